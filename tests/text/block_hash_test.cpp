// Block hashes against values from the reference xxhash library (python-xxhash, xxh3_128), so that the definition stays
// fixed.
#include "core/text/block_hash.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace moectl {
namespace {

std::vector<int32_t> iota(int n) {
  std::vector<int32_t> ids(size_t(n), 0);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

TEST(BlockHash, Root) {
  EXPECT_EQ(root_hash(""), (BlockHash{0x6001c324468d497f, 0x99aa06d3014798d8}));
  EXPECT_EQ(root_hash("tenant-a"), (BlockHash{0x18ab3e02a86ce641, 0x840d4cd48986a98b}));
}

TEST(BlockHash, ChainedBlocks) {
  const BlockHash first = block_hash(root_hash(""), iota(64));
  EXPECT_EQ(first, (BlockHash{0xd064fcebdd9c7cf0, 0x8b3a8a11feacb07c}));
  EXPECT_EQ(block_hash(first, std::vector<int32_t>{-1, 0, 2147483647}),
            (BlockHash{0x3efd6b28ac27d234, 0x46a3c2cadd11ed33}));
  EXPECT_EQ(block_hash(root_hash("tenant-a"), iota(1000)), (BlockHash{0xee44e69be24d816f, 0xc3b7fea71a0237ee}));
}

}  // namespace
}  // namespace moectl
