// Chained hashes of blocks of token ids: block i's hash covers everything before it. The prefix cache finds pages by
// them and peers may name blocks by them, so the definition is fixed: XXH3-128 with seed 0 over (parent hash low, high
// as little-endian u64, then the ids as little-endian i32).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace moectl {

struct BlockHash {
  uint64_t low = 0, high = 0;
  friend bool operator==(const BlockHash&, const BlockHash&) = default;
};

struct BlockHasher {  // for unordered containers: the value is a hash already
  size_t operator()(const BlockHash& h) const { return size_t(h.low); }
};

// The parent of a first block: XXH3-128 of the salt's bytes. Texts under different salts share no hash.
BlockHash root_hash(std::string_view salt);
BlockHash block_hash(const BlockHash& parent, std::span<const int32_t> ids);

}  // namespace moectl
