// One-shot all-reduce between ranks on GPUs, against sums that are exact in every dtype on the wire.
#include <cmath>

#include "tests/kernels_cuda/gpu_ranks.h"

namespace moectl::test {
namespace {

using AllReduceTest = RanksOnGpus;

// One kernel per all-reduce, of which each follows the one before at once: values change every time, so a slot that is
// read too early or overwritten too soon gives another sum.
TEST_F(AllReduceTest, OneShotAllReduces) {
  constexpr int64_t kMost = 40'000;
  for (const int size : {2, 3, 4})
    for (const DType wire : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(fmt::format("{} ranks, {} on the wire", size, dtype_name(wire)));
      std::vector<Rank> group = ranks(size, {.one_shot_bytes = kMost * 4, .wire = wire});
      on_all(group, [&](Rank& rank) {
        Device& d = rank.device();
        const int r = rank.comm->rank();
        for (const int64_t n : {int64_t{8}, int64_t{7168}, kMost}) {
          const Buffer data = d.alloc(n * 4);
          rank.comm->register_buffer(data.get(), n * 4);
          std::vector<float> mine;
          // Small integers: exact in both dtypes.
          for (int64_t i = 0; i < n; ++i) mine.push_back(float((i + r) % 5 - 2));
          d.upload(data.get(), mine.data(), n * 4);
          rank.comm->all_gather_host(0);
          const Graph graph = d.graphs()->capture([&] { rank.comm->all_reduce(floats(data, n), rank.stream()); });
          rank.comm->all_gather_host(0);
          std::vector<float> expected;
          for (int64_t i = 0; i < n; ++i) {
            float sum = 0.0f;
            for (int p = 0; p < size; ++p) sum += float((i + p) % 5 - 2);
            expected.push_back(sum);
          }
          d.graphs()->replay(graph, rank.stream());
          EXPECT_TRUE(same_bits(download(rank, data, n), expected)) << n << " values";
          rank.comm->all_gather_host(0);
          // Each all-reduce of equal powers of two multiplies by the number of ranks.
          const float begin = size == 3 ? 1.0f : 0x1p-120f;  // 3^5 is the last that bf16 holds
          const int rounds = size == 3 ? 5 : size == 2 ? 100 : 50;
          const std::vector<float> equal(size_t(n), begin);
          d.upload(data.get(), equal.data(), n * 4);
          rank.comm->all_gather_host(0);
          for (int i = 0; i < rounds; ++i) d.graphs()->replay(graph, rank.stream());
          const float last = begin * std::pow(float(size), float(rounds));
          EXPECT_EQ(download(rank, data, n), std::vector<float>(size_t(n), last)) << n << " values";
          rank.comm->all_gather_host(0);
        }
      });
    }
}

}  // namespace
}  // namespace moectl::test
