// Rows of experts in the dtypes that only GPUs have: gathered rows are the sources' rows, bit for bit. (The order of
// rows: tests/kernels/moe_permute_test.cpp.)
#include "kernels/cuda/runtime/kernels.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using MoePermuteGpuTest = GpuTest;

constexpr int64_t kExperts = 6, kTopK = 3;

// Bytes and scales of row `i` of an operand whose memory is `bytes`.
std::vector<uint8_t> row_bytes(const std::vector<uint8_t>& bytes, DType dtype, int64_t rows, int64_t size, int64_t i) {
  std::vector<uint8_t> row;
  const auto append = [&](int64_t at, int64_t n) { row.insert(row.end(), bytes.begin() + at, bytes.begin() + at + n); };
  if (dtype != DType::kF8E4M3) {
    append(i * size * dtype_bytes(dtype), size * dtype_bytes(dtype));
    return row;
  }
  const int64_t scales = (rows * size + 255) / 256 * 256;
  for (int64_t kb = 0; kb < size / kFp8Block; ++kb) {
    append((kb * rows + i) * kFp8Block, kFp8Block);
    append(scales + (kb * Operand::scale_stride(rows) + i) * int64_t(sizeof(float)), int64_t(sizeof(float)));
  }
  return row;
}

// Two sources, of which tokens [begin, ..) are gathered; every expert is the caller's.
void expect_rows(DType dtype, int64_t size, std::vector<int64_t> tokens, int64_t begin) {
  SCOPED_TRACE(
      fmt::format("{} rows of {}, {} and {} tokens from {}", dtype_name(dtype), size, tokens[0], tokens[1], begin));
  Random random(uint64_t(tokens[0] + size));
  struct Source {
    std::vector<uint8_t> bytes;
    std::vector<int32_t> idx;
    std::unique_ptr<DeviceArray<uint8_t>> x;
    std::unique_ptr<DeviceArray<int32_t>> experts, row_of;
  };
  std::vector<Source> sources;
  std::vector<MoeSource> args_sources;
  int64_t room = 0;
  for (int64_t n : tokens) {
    Source s;
    s.bytes.resize(size_t(Operand::num_bytes(dtype, n, size)));
    for (uint8_t& b : s.bytes) b = uint8_t(random.below(256));
    for (int64_t i = 0; i < n * kTopK; ++i) s.idx.push_back(int32_t(random.below(kExperts + 1)) - 1);  // -1: none
    s.x = std::make_unique<DeviceArray<uint8_t>>(s.bytes);
    s.experts = std::make_unique<DeviceArray<int32_t>>(s.idx);
    s.row_of = std::make_unique<DeviceArray<int32_t>>(n * kTopK);
    MoeSource a;
    a.x = Operand(s.x->data(), dtype, {n, size});
    a.expert_idx = View<const int32_t>(s.experts->data() + begin * kTopK, {n - begin, kTopK});
    a.row_of = View<int32_t>(s.row_of->data() + begin * kTopK, {(n - begin) * kTopK});
    a.token_begin = begin;
    room += (n - begin) * kTopK;
    args_sources.push_back(a);
    sources.push_back(std::move(s));
  }
  const DeviceArray<uint8_t> out(Operand::num_bytes(dtype, room, size));
  const DeviceArray<int32_t> offsets(kExperts + 1), counts(kExperts);
  MoePermuteArgs a;
  a.sources = args_sources;
  a.expert_offsets = View<int32_t>(offsets.data(), {kExperts + 1});
  a.x = Operand(out.data(), dtype, {room, size});
  cuda::moe_permute(a, counts.data(), {});
  const std::vector<uint8_t> rows = out.host();
  int64_t num_rows = 0;
  for (size_t r = 0; r < sources.size(); ++r) {
    const Source& s = sources[r];
    const std::vector<int32_t> row_of = s.row_of->host();
    for (int64_t i = begin * kTopK; i < int64_t(s.idx.size()); ++i) {
      if (s.idx[size_t(i)] < 0) continue;
      ++num_rows;
      ASSERT_EQ(row_bytes(rows, dtype, room, size, row_of[size_t(i)]),
                row_bytes(s.bytes, dtype, tokens[r], size, i / kTopK))
          << "source " << r << ", choice " << i;
    }
  }
  ASSERT_EQ(offsets.host().back(), num_rows);
}

TEST_F(MoePermuteGpuTest, RowsInTheirDtype) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3})
    for (int64_t size : {128, 384, 7168})
      for (int64_t begin : {0, 1}) {
        expect_rows(dtype, size, {1, 7}, begin);
        expect_rows(dtype, size, {129, 2}, begin);
      }
  for (DType dtype : {DType::kF32, DType::kBF16})  // rows that are no whole number of 16-byte units
    for (int64_t size : {1, 7, 36, 130}) expect_rows(dtype, size, {5, 33}, 2);
  expect_rows(DType::kF8E4M3, 256, {1000, 900}, 3);  // one block per expert counts
}

TEST_F(MoePermuteGpuTest, RefusesOtherDtypesThanTheSources) {
  DeviceArray<uint8_t> x(1024), out(1024);
  DeviceArray<int32_t> experts(std::vector<int32_t>{0}), row_of(1), offsets(2), counts(1);
  MoeSource source;
  source.x = Operand(x.data(), DType::kBF16, {1, 128});
  source.expert_idx = View<const int32_t>(experts.data(), {1, 1});
  source.row_of = View<int32_t>(row_of.data(), {1});
  MoePermuteArgs a;
  a.sources = std::span(&source, 1);
  a.expert_offsets = View<int32_t>(offsets.data(), {2});
  a.x = Operand(out.data(), DType::kF32, {1, 128});
  EXPECT_THROW(cuda::moe_permute(a, counts.data(), {}), Error);
}

}  // namespace
}  // namespace moectl::test
