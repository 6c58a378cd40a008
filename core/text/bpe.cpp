#include "core/text/bpe.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>

#include "core/base/check.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

constexpr uint64_t kNoPair = std::numeric_limits<uint64_t>::max();
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr size_t kMaxShortPiece = 48;  // symbols; up to here looking at every pair beats a heap

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t x) {
  return (x ^ (x >> 29)) * 0x9e3779b97f4a7c15u;
}

template <class Word>
Word load(const char* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

// A short word as three numbers, which are equal for equal words only. Loads overlap instead of stopping at the end.
struct WordKey {
  static constexpr size_t kMaxBytes = 24;
  uint64_t a = 0, b = 0, c = 0;  // c: its size, too

  explicit WordKey(std::string_view word) {
    const char* p = word.data();
    const size_t n = word.size();
    if (n > 8) {
      a = load<uint64_t>(p);
      b = load<uint64_t>(n > 16 ? p + 8 : p + n - 8);
      if (n > 16) c = load<uint64_t>(p + n - 8);
    } else if (n >= 4) {
      a = load<uint32_t>(p) | uint64_t{load<uint32_t>(p + n - 4)} << 32;
    } else {
      for (size_t i = 0; i < n; ++i) a = a << 8 | static_cast<uint8_t>(p[i]);
    }
  }
};

// Words met before, and their tokens: text repeats its words. Direct mapped and bounded, one a thread, shared by all
// tokenizers (an entry names its own).
struct WordCache {
  static constexpr size_t kEntries = 1 << 14, kMaxIds = 7;
  struct alignas(64) Entry {
    uint64_t a = 0, b = 0, c = 0;
    uint32_t owner_and_size = 0;  // 0: free
    int32_t ids[kMaxIds];         // up to the first -1
  };
  std::vector<Entry> entries = std::vector<Entry>(kEntries);

  Entry& entry_of(const WordKey& key, uint32_t owner_and_size) {
    const uint64_t hash = mix(mix(mix(key.a + owner_and_size) ^ key.b) ^ key.c);
    return entries[hash >> (64 - std::countr_zero(kEntries))];
  }
};

std::atomic<uint32_t> next_cache_key{1};

}  // namespace

Bpe::Bpe(BpeModel model) : model_(std::move(model)), cache_key_(next_cache_key.fetch_add(1)) {
  CHECK(cache_key_ < 1u << 27, "{} tokenizers in one process", cache_key_);
  const size_t num_slots = std::bit_ceil(std::max<size_t>(model_.merges.size() * 2, 16));
  slots_.assign(num_slots, Slot{kNoPair, kNoRank, -1});
  shift_ = 64 - std::countr_zero(num_slots);
  for (const BpeMerge& merge : model_.merges) {
    const uint64_t pair = pair_of(merge.left, merge.right);
    size_t i = mix(pair) >> shift_;
    while (slots_[i].pair != kNoPair && slots_[i].pair != pair) i = (i + 1) & (num_slots - 1);
    slots_[i] = {pair, static_cast<uint32_t>(merge.rank), merge.merged};  // a repeated pair: the last one counts
  }
  model_.merges = {};
}

const Bpe::Slot* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t i = mix(pair) >> shift_;; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].pair == pair) return &slots_[i];
    if (slots_[i].pair == kNoPair) return nullptr;
  }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  const std::string& start = model_.word_start;
  if (start.empty()) {
    encode_word(piece, ids);
    return;
  }
  for (size_t begin = 0; begin < piece.size();) {
    size_t end = begin;
    while (piece.compare(end, start.size(), start) == 0) end += start.size();
    end = std::min(piece.find(start, end), piece.size());
    encode_word(piece.substr(begin, end - begin), ids);
    begin = end;
  }
}

void Bpe::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  if (word.size() > WordKey::kMaxBytes) {
    encode_uncached(word, ids);
    return;
  }
  thread_local WordCache cache;
  const WordKey key(word);
  const uint32_t owner_and_size = cache_key_ << 5 | static_cast<uint32_t>(word.size());
  WordCache::Entry& entry = cache.entry_of(key, owner_and_size);
  if (entry.owner_and_size == owner_and_size && entry.a == key.a && entry.b == key.b && entry.c == key.c) {
    for (const int32_t id : entry.ids) {
      if (id < 0) break;
      ids.push_back(id);
    }
    return;
  }
  const size_t first = ids.size();
  encode_uncached(word, ids);
  const size_t num_ids = ids.size() - first;
  if (num_ids > WordCache::kMaxIds) return;
  entry.a = key.a, entry.b = key.b, entry.c = key.c;
  entry.owner_and_size = owner_and_size;
  std::copy(ids.begin() + first, ids.end(), entry.ids);
  if (num_ids < WordCache::kMaxIds) entry.ids[num_ids] = -1;
}

void Bpe::encode_uncached(std::string_view word, std::vector<int32_t>& ids) const {
  if (!model_.whole_pieces.empty()) {
    if (const auto whole = model_.whole_pieces.find(std::string(word)); whole != model_.whole_pieces.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  const size_t first = ids.size();
  append_symbols(word, ids);
  ids.size() - first <= kMaxShortPiece ? merge_short(ids, first) : merge_long(ids, first);
}

void Bpe::append_symbols(std::string_view word, std::vector<int32_t>& ids) const {
  const auto append_bytes = [&](std::string_view bytes) {
    for (const char byte : bytes) ids.push_back(model_.byte_ids[static_cast<uint8_t>(byte)]);
  };
  if (model_.char_ids.empty()) return append_bytes(word);
  bool after_unk = false;
  for (size_t pos = 0; pos < word.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(word, pos);
    const int32_t id = c < model_.char_ids.size() ? model_.char_ids[c] : -1;
    const bool is_unk = id < 0 && model_.byte_ids[0] < 0;
    if (id >= 0) {
      ids.push_back(id);
    } else if (!is_unk) {
      append_bytes(word.substr(begin, pos - begin));
    } else if (model_.unk_id >= 0 && !(model_.fuse_unk && after_unk)) {
      ids.push_back(model_.unk_id);
    }
    after_unk = is_unk;
  }
}

// Symbols in an array, closed up after every merge; the lowest rank wins, the leftmost of equals.
void Bpe::merge_short(std::vector<int32_t>& ids, size_t first) const {
  struct Symbol {
    int32_t id;
    uint32_t rank;  // of this symbol with the next one
    int32_t merged;
  };
  std::array<Symbol, kMaxShortPiece> symbols;
  int size = static_cast<int>(ids.size() - first);
  const auto look_up = [&](int i) {
    const Slot* slot = i + 1 < size ? find(symbols[i].id, symbols[i + 1].id) : nullptr;
    symbols[i].rank = slot ? slot->rank : kNoRank;
    symbols[i].merged = slot ? slot->merged : -1;
  };
  for (int i = 0; i < size; ++i) symbols[i].id = ids[first + i];
  for (int i = 0; i < size; ++i) look_up(i);
  while (size > 1) {
    int best = 0;
    for (int i = 1; i + 1 < size; ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == kNoRank) break;
    symbols[best].id = symbols[best].merged;
    std::copy(symbols.begin() + best + 2, symbols.begin() + size, symbols.begin() + best + 1);
    --size;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids.resize(first + size);
  for (int i = 0; i < size; ++i) ids[first + i] = symbols[i].id;
}

// A linked list of symbols and a heap of candidate merges; candidates whose symbols changed meanwhile are skipped.
void Bpe::merge_long(std::vector<int32_t>& ids, size_t first) const {
  constexpr uint32_t kEnd = std::numeric_limits<uint32_t>::max();
  CHECK(ids.size() - first < kEnd, "a piece of {} symbols", ids.size() - first);
  struct Symbol {
    int32_t id;  // -1: merged into the one before
    uint32_t previous, next;
  };
  struct Candidate {
    uint32_t rank, pos;
    int32_t left, right, merged;
    bool operator<(const Candidate& other) const {  // std heaps keep the greatest first
      return rank != other.rank ? rank > other.rank : pos > other.pos;
    }
  };
  const auto size = static_cast<uint32_t>(ids.size() - first);
  std::vector<Symbol> symbols(size);
  for (uint32_t i = 0; i < size; ++i) {
    symbols[i] = {ids[first + i], i == 0 ? kEnd : i - 1, i + 1 == size ? kEnd : i + 1};
  }
  std::vector<Candidate> heap;
  const auto candidate = [&](uint32_t pos) -> bool {
    if (pos == kEnd || symbols[pos].next == kEnd) return false;
    const int32_t left = symbols[pos].id, right = symbols[symbols[pos].next].id;
    const Slot* slot = find(left, right);
    if (slot) heap.push_back({slot->rank, pos, left, right, slot->merged});
    return slot != nullptr;
  };
  for (uint32_t i = 0; i < size; ++i) candidate(i);
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate top = heap.back();
    heap.pop_back();
    Symbol& symbol = symbols[top.pos];
    if (symbol.id != top.left || symbol.next == kEnd || symbols[symbol.next].id != top.right) continue;
    Symbol& right = symbols[symbol.next];
    symbol.id = top.merged;
    symbol.next = right.next;
    right.id = -1;
    if (symbol.next != kEnd) symbols[symbol.next].previous = top.pos;
    if (candidate(symbol.previous)) std::push_heap(heap.begin(), heap.end());
    if (candidate(top.pos)) std::push_heap(heap.begin(), heap.end());
  }
  ids.resize(first);
  for (const Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
}

}  // namespace moectl
