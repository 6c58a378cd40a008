// Synthetic weights: every tensor that the config implies, of the right shape and format, with numbers of the intended
// spread; the loader takes them.
#include "core/model/synthetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/base/error.h"
#include "core/model/shapes.h"
#include "core/model/tensor_names.h"
#include "core/model/weights.h"

namespace moectl {
namespace {

std::vector<double> values(const TensorInfo& t) {
  std::vector<double> all;
  const int width = dtype_bytes(t.dtype);
  for (int64_t i = 0; i < t.num_bytes / width; ++i) {
    const std::byte* p = t.data + i * width;
    uint16_t half;
    float single;
    std::memcpy(&half, p, size_t(std::min(width, 2)));
    if (width == 4) std::memcpy(&single, p, 4);
    all.push_back(t.dtype == DType::kBF16     ? double(bf16_to_f32(half))
                  : t.dtype == DType::kF8E4M3 ? double(f8_e4m3_to_f32(uint8_t(*p)))
                                              : double(single));
  }
  return all;
}

double deviation(const std::vector<double>& v) {
  double sum = 0, squares = 0;
  for (const double x : v) sum += x, squares += x * x;
  const double mean = sum / double(v.size());
  return std::sqrt(squares / double(v.size()) - mean * mean);
}

TEST(Synthetic, HasEveryTensorInSaneNumbers) {
  const Config config = shape_config("tiny");
  const Checkpoint checkpoint = synthetic_checkpoint(config, "tiny");
  size_t num_f8 = 0, num_tensors = 0;
  for_each_tensor(config, [&](const TensorSpec& spec) {
    SCOPED_TRACE(spec.name);
    const TensorInfo& t = checkpoint.get(spec.name, spec.shape);
    ++num_tensors;
    const std::vector<double> v = values(t);
    if (spec.name.ends_with("norm.weight")) {
      EXPECT_THAT(v, testing::Each(1.0));
    } else if (t.dtype == DType::kF8E4M3) {
      ++num_f8;
      const std::vector<double> scales = values(checkpoint.get(
          spec.name + "_scale_inv", std::vector<int64_t>{(spec.shape[0] + 127) / 128, (spec.shape[1] + 127) / 128}));
      EXPECT_THAT(scales, testing::Each(testing::AllOf(testing::Gt(1e-4), testing::Lt(4e-4))));
      EXPECT_NEAR(deviation(v) * 0.00025, 0.02, 0.002);
    } else if (v.size() >= 4096) {
      EXPECT_NEAR(deviation(v), 0.02, 0.002);
    }
  });
  // Five projections of attention a layer; dense, shared and routed feed-forwards; no router or head.
  EXPECT_EQ(num_f8, 3u * 5 + 3 + 2 * 3 * (16 + 1));
  EXPECT_EQ(checkpoint.tensors().size(), num_tensors + num_f8);
  EXPECT_NE(checkpoint.tensors().begin()->second.data, std::next(checkpoint.tensors().begin())->second.data);
}

TEST(Synthetic, EqualConfigsGiveEqualNumbers) {
  const Config config = shape_config("tiny");
  const Checkpoint a = synthetic_checkpoint(config, "a"), b = synthetic_checkpoint(config, "b");
  for (const auto& [name, t] : a.tensors())
    ASSERT_EQ(std::memcmp(t.data, b.get(name, t.shape).data, size_t(t.num_bytes)), 0) << name;
}

TEST(Synthetic, TheLoaderTakesThemAndKeepsThem) {
  const Config config = shape_config("tiny");
  const Checkpoint checkpoint = synthetic_checkpoint(config, "tiny");
  auto ops = make_ops({});
  const auto weights = load_weights(config, checkpoint, *ops);
  EXPECT_GT(weights->num_bytes, checkpoint.total_bytes() / 2);
  const TensorInfo& norm = *checkpoint.find("model.norm.weight");
  EXPECT_THAT(values(norm), testing::Each(1.0)) << "letting a file's pages go must not touch memory without a file";
}

TEST(Synthetic, OtherFormatsAreRefused) {
  Config config = shape_config("tiny");
  config.quant.form = QuantForm::kAwq;
  config.quant.scheme = "awq";
  EXPECT_THROW(synthetic_checkpoint(config, "x"), Error);
}

}  // namespace
}  // namespace moectl
