// Which workers have seen the beginning of a prompt. The router does not tokenise: prompts are cut into blocks of
// bytes, and each block's hash covers everything before it. Bounded: the blocks used longest ago are evicted. Not
// thread-safe.
#pragma once

#include <cstddef>
#include <list>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/text/block_hash.h"

namespace moectl::router {

inline constexpr size_t kPromptBlockBytes = 256;  // about one KV page of 64 tokens
inline constexpr size_t kMaxPromptBlocks = 4096;  // of one prompt; what follows does not count

// Hashes of the whole blocks of `prompt`; prompts under different salts share none.
std::vector<BlockHash> prompt_blocks(std::string_view salt, std::string_view prompt);

class PrefixIndex {
 public:
  explicit PrefixIndex(size_t max_blocks) : max_blocks_(max_blocks) {}
  // How many blocks from the beginning the worker has seen.
  int match(const std::vector<BlockHash>& blocks, int worker) const;
  void insert(const std::vector<BlockHash>& blocks, int worker);
  void remove_worker(int worker);
  size_t num_blocks() const { return entries_.size(); }
  size_t approximate_bytes() const { return entries_.size() * 160; }

 private:
  static constexpr size_t kWorkersPerBlock = 8;  // the last ones
  struct Entry {
    std::list<BlockHash>::iterator used;
    std::vector<int> workers;
  };
  size_t max_blocks_;
  std::list<BlockHash> used_;  // longest ago first
  std::unordered_map<BlockHash, Entry, BlockHasher> entries_;
};

}  // namespace moectl::router
