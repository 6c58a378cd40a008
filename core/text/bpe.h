// Bpe: byte-pair merges over one piece of text. Immutable after construction; any thread. It knows token ids and bytes,
// not where pieces come from.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moectl {

// `left` followed by `right` becomes `merged`; the lowest rank goes first, the leftmost of equals.
struct BpeMerge {
  int32_t left, right, merged;
  int32_t rank;
};

struct BpeModel {
  // Byte-level: the token of each byte; -1 when there is none (allowed only for bytes that UTF-8 never has).
  // With characters: the tokens of the bytes of characters that have no token (byte fallback); all -1 without.
  std::array<int32_t, 256> byte_ids;
  std::vector<int32_t> char_ids;  // by code point, -1: none. Symbols are characters, not bytes, unless this is empty
  int32_t unk_id = -1;            // of characters that have neither; -1: they vanish
  bool fuse_unk = false;          // one unk_id for a run of them
  // Not empty: no merge joins what stands before this text with what begins with it, unless that is this text again.
  // So words that begin with it ("\u2581" of SentencePiece) merge apart.
  std::string word_start;
  std::vector<BpeMerge> merges;
  // Pieces that are one token whatever the merges say (`ignore_merges`); empty otherwise.
  std::unordered_map<std::string, int32_t> whole_pieces;
};

class Bpe {
 public:
  explicit Bpe(BpeModel model);

  // Appends the tokens of one piece. O(n log n) in its bytes.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Slot {
    uint64_t pair;  // left << 32 | right; kNoPair when free
    uint32_t rank;
    int32_t merged;
  };
  const Slot* find(int32_t left, int32_t right) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
  void encode_uncached(std::string_view word, std::vector<int32_t>& ids) const;
  // Appends one symbol for each byte or character.
  void append_symbols(std::string_view word, std::vector<int32_t>& ids) const;
  // Merge ids[first...] in place.
  void merge_short(std::vector<int32_t>& ids, size_t first) const;
  void merge_long(std::vector<int32_t>& ids, size_t first) const;

  BpeModel model_;           // its merges are in slots_
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  int shift_ = 0;            // 64 - log2(slots_.size())
  uint32_t cache_key_;       // tells this object's entries in the per-thread cache from another's
};

}  // namespace moectl
