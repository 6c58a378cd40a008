// Row copies of indexes that do not exist give zeros; everything else about them is in tests/kernels/cpu_ops_test.cpp.
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class EmbedTest : public GpuTest {};

TEST_F(EmbedTest, IndexesThatDoNotExist) {
  MirrorOps ops(make_ops({.device = "cuda"}));
  const Matrix m = random_matrix(DType::kBF16, 50, 37, 1);
  const Weight table = ops.pack_rows(m.whole());
  const std::vector<int32_t> ids = {-1, 50, 49, INT32_MAX, INT32_MIN};
  std::vector<float> out(ids.size() * 37, NAN);
  ops.embed({View<const int32_t>(ids.data(), {5}), table, View<float>(out.data(), {5, 37})}, {});
  for (size_t i = 0; i < ids.size(); ++i)
    for (int64_t c = 0; c < 37; ++c)
      ASSERT_EQ(out[i * 37 + size_t(c)], ids[i] == 49 ? float(element_value(m.whole(), 49, c)) : 0.0f);
  const auto x = Random(2).floats(50 * 37);
  std::fill(out.begin(), out.end(), NAN);
  ops.gather(
      {View<const float>(x.data(), {50, 37}), View<const int32_t>(ids.data(), {5}), View<float>(out.data(), {5, 37})},
      {});
  for (size_t i = 0; i < ids.size(); ++i)
    for (size_t c = 0; c < 37; ++c) ASSERT_EQ(out[i * 37 + c], ids[i] == 49 ? x[49 * 37 + c] : 0.0f);
}

}  // namespace
}  // namespace moectl::test
