// Memory, embeddings and row copies: everything here is exact.
#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(CpuOpsTest);

TEST_P(CpuOpsTest, Embed) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Matrix m = random_matrix(dtype, 50, 37, 1);
    const Weight table = ops().pack_rows(m.whole());
    const std::vector<int32_t> ids = {0, 49, 7, 7, 1};
    std::vector<float> out(ids.size() * 37, NAN);
    ops().embed({View<const int32_t>(ids.data(), {5}), table, View<float>(out.data(), {5, 37})}, {});
    for (size_t i = 0; i < ids.size(); ++i)
      for (int64_t c = 0; c < 37; ++c) ASSERT_EQ(out[i * 37 + size_t(c)], float(element_value(m.whole(), ids[i], c)));
    for (int32_t bad : {-1, 50}) {
      if (!refuses_bad_indexes()) break;
      EXPECT_THROW(ops().embed({View<const int32_t>(&bad, {1}), table, View<float>(out.data(), {1, 37})}, {}), Error)
          << bad;
    }
  }
}

// The parts of a table give what the whole gives where they have the row, else zeros.
TEST_P(CpuOpsTest, EmbedFromAPartOfTheTable) {
  const Matrix m = random_matrix(DType::kBF16, 50, 37, 1);
  const std::vector<int32_t> ids = {0, 49, 7, 24, 25, 26};
  const auto embed = [&](int64_t begin, int64_t num) {
    MatrixSpec part = m.whole();
    part.data += begin * part.cols * dtype_bytes(part.dtype);
    part.rows = part.num_rows = num;
    std::vector<float> out(ids.size() * 37, NAN);
    ops().embed({.token_ids = View<const int32_t>(ids.data(), {6}),
                 .table = ops().pack_rows(part),
                 .out = View<float>(out.data(), {6, 37}),
                 .first_id = begin,
                 .vocab_size = 50},
                {});
    return out;
  };
  const auto whole = embed(0, 50), first = embed(0, 25), second = embed(25, 25);
  for (size_t i = 0; i < ids.size(); ++i)
    for (size_t c = 0; c < 37; ++c) {
      ASSERT_EQ(first[i * 37 + c], ids[i] < 25 ? whole[i * 37 + c] : 0.0f);
      ASSERT_EQ(second[i * 37 + c], ids[i] < 25 ? 0.0f : whole[i * 37 + c]);
    }
}

TEST_P(CpuOpsTest, ConcatColumns) {
  // The last part has fewer columns, or as many.
  for (const auto& [num_parts, width, size] : {std::array<int64_t, 3>{1, 5, 5}, {3, 16, 48}, {4, 9, 31}, {2, 1, 2}})
    for (int64_t num_rows : {0, 1, 7}) {
      const int64_t part_size = num_rows * width + 3;
      const auto parts = Random(uint64_t(size)).floats(num_parts * part_size);
      std::vector<float> out(size_t(num_rows * size), NAN);
      ops().concat_columns(
          {View<const float>(parts.data(), {num_parts, part_size}), width, View<float>(out.data(), {num_rows, size})},
          {});
      for (int64_t i = 0; i < num_rows; ++i)
        for (int64_t c = 0; c < size; ++c) {
          const int64_t part = c / width, held = std::min(width, size - part * width);
          ASSERT_EQ(out[size_t(i * size + c)], parts[size_t(part * part_size + i * held + c % width)])
              << "row " << i << ", column " << c << " of " << size;
        }
    }
}

TEST_P(CpuOpsTest, Gather) {
  const auto x = Random(2).floats(9 * 21);
  const std::vector<int32_t> rows = {8, 0, 3, 3};
  std::vector<float> out(4 * 21, NAN);
  ops().gather(
      {View<const float>(x.data(), {9, 21}), View<const int32_t>(rows.data(), {4}), View<float>(out.data(), {4, 21})},
      {});
  for (int64_t i = 0; i < 4; ++i) EXPECT_TRUE(same_bits(row_of(out, i, 21), row_of(x, rows[size_t(i)], 21)));
}

TEST_P(CpuOpsTest, AllocIsAlignedAndZero) {
  if (!ops().capabilities().host_readable) GTEST_SKIP() << "tests/kernels_cuda looks at device memory";
  for (int64_t num_bytes : {0, 1, 100, 1 << 20}) {
    const Buffer b = ops().device().alloc(num_bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.get()) % 64, 0u);
    for (int64_t i = 0; i < num_bytes; ++i) ASSERT_EQ(b.get()[i], std::byte{0});
  }
  const int64_t half_the_address_space = int64_t{1} << 62;
  try {
    ops().device().alloc(half_the_address_space);
    ADD_FAILURE() << "allocated 2^62 bytes";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kResourceExhausted);
  }
  EXPECT_THROW(ops().device().alloc(-1), Error);
}

TEST_P(CpuOpsTest, NumericsIdNamesThePath) {
  EXPECT_NE(ops().numerics_id().find(GetParam()), std::string::npos);
}

TEST(MakeOps, RefusesWhatItDoesNotKnow) {
  const std::vector<OpsOptions> refused = {
      {.device = "tpu"}, {.device = "cuda", .device_index = 99}, {.cpu_path = "sse"}};
  for (const OpsOptions& options : refused) {
    try {
      make_ops(options);
      ADD_FAILURE() << options.device << ", " << options.cpu_path;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kBadConfig);
    }
  }
}

}  // namespace
}  // namespace moectl::test
