// ByteBpe: byte-pair merges over one piece of text. Immutable after construction; any thread. It knows token ids and
// bytes, not where pieces come from.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moectl {

// One line of the merge table: `left` followed by `right` becomes `merged`. Its rank is its place in the table.
struct BpeMerge {
  int32_t left, right, merged;
};

class ByteBpe {
 public:
  // byte_ids[b] is the token of byte b, -1 when there is none (allowed only for bytes that UTF-8 never has).
  // whole_pieces: pieces that are one token whatever the merges say (`ignore_merges`); empty otherwise.
  ByteBpe(const std::array<int32_t, 256>& byte_ids, const std::vector<BpeMerge>& merges,
          std::unordered_map<std::string, int32_t> whole_pieces);

  // Appends the tokens of one piece. O(n log n) in its bytes.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Slot {
    uint64_t pair;  // left << 32 | right; kNoPair when free
    uint32_t rank;
    int32_t merged;
  };
  const Slot* find(int32_t left, int32_t right) const;
  void encode_uncached(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_short(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_long(std::string_view piece, std::vector<int32_t>& ids) const;

  std::array<int32_t, 256> byte_ids_;
  std::unordered_map<std::string, int32_t> whole_pieces_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  int shift_ = 0;            // 64 - log2(slots_.size())
  uint64_t cache_key_;       // tells this object's entries in the per-thread cache from another's
};

}  // namespace moectl
