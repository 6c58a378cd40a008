#include "core/text/bpe.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>

#include "core/base/check.h"

namespace moectl {
namespace {

constexpr uint64_t kNoPair = std::numeric_limits<uint64_t>::max();
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr size_t kMaxShortPiece = 48;  // up to here looking at every pair beats a heap

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t x) {
  return (x ^ (x >> 29)) * 0x9e3779b97f4a7c15u;
}

// Pieces met before, and their tokens: text repeats its words. Direct mapped and bounded, one a thread, shared by all
// tokenizers (an entry names its own).
struct PieceCache {
  static constexpr size_t kEntries = 1 << 14, kMaxBytes = 24, kMaxIds = 7;
  struct Entry {
    uint64_t owner = 0;  // 0: free
    uint8_t num_bytes = 0, num_ids = 0;
    char bytes[kMaxBytes];
    int32_t ids[kMaxIds];
  };
  std::unique_ptr<Entry[]> entries = std::make_unique<Entry[]>(kEntries);

  Entry& entry_of(std::string_view piece, uint64_t owner) {
    uint64_t words[kMaxBytes / 8] = {};
    std::memcpy(words, piece.data(), piece.size());
    const uint64_t hash = mix(mix(mix(words[0] + owner) ^ words[1]) ^ words[2] ^ piece.size() << 56);
    return entries[hash >> (64 - std::countr_zero(kEntries))];
  }
};

std::atomic<uint64_t> next_cache_key{1};

}  // namespace

ByteBpe::ByteBpe(const std::array<int32_t, 256>& byte_ids, const std::vector<BpeMerge>& merges,
                 std::unordered_map<std::string, int32_t> whole_pieces)
    : byte_ids_(byte_ids), whole_pieces_(std::move(whole_pieces)), cache_key_(next_cache_key.fetch_add(1)) {
  const size_t num_slots = std::bit_ceil(std::max<size_t>(merges.size() * 2, 16));
  slots_.assign(num_slots, Slot{kNoPair, kNoRank, -1});
  shift_ = 64 - std::countr_zero(num_slots);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t pair = pair_of(merges[rank].left, merges[rank].right);
    size_t i = mix(pair) >> shift_;
    while (slots_[i].pair != kNoPair && slots_[i].pair != pair) i = (i + 1) & (num_slots - 1);
    slots_[i] = {pair, static_cast<uint32_t>(rank), merges[rank].merged};  // a repeated pair: the last one counts
  }
}

const ByteBpe::Slot* ByteBpe::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t i = mix(pair) >> shift_;; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].pair == pair) return &slots_[i];
    if (slots_[i].pair == kNoPair) return nullptr;
  }
}

void ByteBpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.empty()) return;
  if (piece.size() == 1) {
    ids.push_back(byte_ids_[static_cast<uint8_t>(piece[0])]);
    return;
  }
  if (piece.size() > PieceCache::kMaxBytes) {
    encode_uncached(piece, ids);
    return;
  }
  thread_local PieceCache cache;
  PieceCache::Entry& entry = cache.entry_of(piece, cache_key_);
  if (entry.owner == cache_key_ && std::string_view(entry.bytes, entry.num_bytes) == piece) {
    ids.insert(ids.end(), entry.ids, entry.ids + entry.num_ids);
    return;
  }
  const size_t first = ids.size();
  encode_uncached(piece, ids);
  const size_t num_ids = ids.size() - first;
  if (num_ids > PieceCache::kMaxIds) return;
  entry.owner = cache_key_;
  entry.num_bytes = static_cast<uint8_t>(piece.size());
  entry.num_ids = static_cast<uint8_t>(num_ids);
  std::memcpy(entry.bytes, piece.data(), piece.size());
  std::copy(ids.begin() + first, ids.end(), entry.ids);
}

void ByteBpe::encode_uncached(std::string_view piece, std::vector<int32_t>& ids) const {
  if (!whole_pieces_.empty()) {
    if (const auto whole = whole_pieces_.find(std::string(piece)); whole != whole_pieces_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  piece.size() <= kMaxShortPiece ? merge_short(piece, ids) : merge_long(piece, ids);
}

// Symbols in an array, closed up after every merge; the lowest rank wins, the leftmost of equals.
void ByteBpe::merge_short(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t id;
    uint32_t rank;  // of this symbol with the next one
    int32_t merged;
  };
  std::array<Symbol, kMaxShortPiece> symbols;
  int size = static_cast<int>(piece.size());
  const auto look_up = [&](int i) {
    const Slot* slot = i + 1 < size ? find(symbols[i].id, symbols[i + 1].id) : nullptr;
    symbols[i].rank = slot ? slot->rank : kNoRank;
    symbols[i].merged = slot ? slot->merged : -1;
  };
  for (int i = 0; i < size; ++i) symbols[i].id = byte_ids_[static_cast<uint8_t>(piece[i])];
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
  for (int i = 0; i < size; ++i) ids.push_back(symbols[i].id);
}

// A linked list of symbols and a heap of candidate merges; candidates whose symbols changed meanwhile are skipped.
void ByteBpe::merge_long(std::string_view piece, std::vector<int32_t>& ids) const {
  CHECK(piece.size() < std::numeric_limits<uint32_t>::max(), "a piece of {} bytes", piece.size());
  constexpr uint32_t kEnd = std::numeric_limits<uint32_t>::max();
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
  const auto size = static_cast<uint32_t>(piece.size());
  std::vector<Symbol> symbols(size);
  for (uint32_t i = 0; i < size; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i == 0 ? kEnd : i - 1, i + 1 == size ? kEnd : i + 1};
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
  for (const Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
}

}  // namespace moectl
