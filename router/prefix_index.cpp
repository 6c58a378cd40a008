#include "router/prefix_index.h"

#include <algorithm>
#include <cstring>
#include <span>

namespace moectl::router {

std::vector<BlockHash> prompt_blocks(std::string_view salt, std::string_view prompt) {
  const size_t count = std::min(prompt.size() / kPromptBlockBytes, kMaxPromptBlocks);
  std::vector<BlockHash> blocks;
  blocks.reserve(count);
  BlockHash parent = root_hash(salt);
  int32_t words[kPromptBlockBytes / 4];
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(words, prompt.data() + i * kPromptBlockBytes, kPromptBlockBytes);
    parent = block_hash(parent, words);
    blocks.push_back(parent);
  }
  return blocks;
}

int PrefixIndex::match(const std::vector<BlockHash>& blocks, int worker) const {
  int count = 0;
  for (const BlockHash& block : blocks) {
    const auto it = entries_.find(block);
    if (it == entries_.end()) break;
    const std::vector<int>& seen = it->second.workers;
    if (std::find(seen.begin(), seen.end(), worker) == seen.end()) break;
    ++count;
  }
  return count;
}

void PrefixIndex::insert(const std::vector<BlockHash>& blocks, int worker) {
  // From the end, so that a prompt's first blocks are the ones used last: a block is no use without those before it.
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    auto [it, inserted] = entries_.try_emplace(*block);
    Entry& entry = it->second;
    if (inserted) {
      entry.used = used_.insert(used_.end(), *block);
    } else {
      used_.splice(used_.end(), used_, entry.used);
    }
    std::erase(entry.workers, worker);
    if (entry.workers.size() >= kWorkersPerBlock) entry.workers.erase(entry.workers.begin());
    entry.workers.push_back(worker);
  }
  while (entries_.size() > max_blocks_) {
    entries_.erase(used_.front());
    used_.pop_front();
  }
}

void PrefixIndex::remove_worker(int worker) {
  for (auto it = entries_.begin(); it != entries_.end();) {
    std::erase(it->second.workers, worker);
    if (it->second.workers.empty()) {
      used_.erase(it->second.used);
      it = entries_.erase(it);
    } else {
      ++it;
    }
  }
}

}  // namespace moectl::router
