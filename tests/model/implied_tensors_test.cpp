// What a config implies is what checkpoints of it store: the loader finds every matrix, and the bytes agree.
#include "core/model/implied_tensors.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "core/model/inspect.h"
#include "core/model/model.h"
#include "core/model/quant_tensors.h"
#include "core/model/weights.h"
#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using testing::IsEmpty;

std::vector<std::filesystem::path> checkpoints() {
  std::vector<std::filesystem::path> all = {test::source_dir() / "models/demo"};
  for (const auto& entry : std::filesystem::directory_iterator(test::source_dir() / "tests/golden"))
    if (std::filesystem::exists(entry.path() / "config.json")) all.push_back(entry.path());
  return all;
}

TEST(ImpliedTensors, TheLoaderFindsEveryMatrix) {
  for (const auto& dir : checkpoints()) {
    SCOPED_TRACE(dir.filename().string());
    Config config = read_config(dir);
    leave_out_absent_mtp(config, Checkpoint::open(dir));
    const Checkpoint implied = implied_checkpoint(config, "implied");
    for_each_tensor(config, [&](const TensorSpec& tensor) {
      const StoredMatrix stored = find_matrix(config.quant, implied, tensor);
      EXPECT_THAT(stored.missing, IsEmpty()) << tensor.name;
      EXPECT_THAT(stored.wrong, IsEmpty()) << tensor.name;
    });
  }
}

TEST(ImpliedTensors, HaveTheBytesOfRealCheckpoints) {
  for (const auto& dir : checkpoints()) {
    SCOPED_TRACE(dir.filename().string());
    Config config = read_config(dir);
    const Checkpoint real = Checkpoint::open(dir);
    leave_out_absent_mtp(config, real);
    const Checkpoint implied = implied_checkpoint(config, "implied");
    int64_t differing = 0;
    for (const auto& [name, t] : implied.tensors()) {
      const TensorInfo* other = real.find(name);
      const bool one_scale = other && other->shape.empty() && t.shape == std::vector<int64_t>{1};
      if (!other)
        ADD_FAILURE() << name << " is not in the checkpoint";
      else if (other->shape != t.shape && !one_scale)
        ADD_FAILURE() << name << " has another shape";
      else if (other->dtype != t.dtype)
        differing += std::abs(other->num_bytes - t.num_bytes);
    }
    // What a checkpoint stores beside a matrix and no computation reads: sizes, scales of activations.
    for (const auto& [name, t] : real.tensors())
      if (name.ends_with(".weight_shape") || name.ends_with(".input_scale")) differing += t.num_bytes;
    const Shard whole = whole_model(config);
    EXPECT_LE(std::abs(shard_bytes(config, implied, whole) - shard_bytes(config, real, whole)), differing);
    // With biases of routers and scales: small in any model that is not this small.
    EXPECT_LE(double(differing), 0.03 * double(real.total_bytes()));
  }
}

// Independent of the forms: unquantized models store each parameter once, in two bytes.
TEST(ImpliedTensors, AreTheParametersOfPublishedModels) {
  const auto published =
      nlohmann::json::parse(test::read_file(test::source_dir() / "tests/model/published_configs.json"));
  int num_plain = 0;
  for (const auto& [name, entry] : published.items()) {
    SCOPED_TRACE(name);
    const Config config = parse_config(entry.at("config"), name);
    const InspectReport::Parameters parameters = inspect_config(config).parameters;
    const double bytes = double(implied_checkpoint(config, name).total_bytes());
    if (config.quant.form == QuantForm::kNone) {
      EXPECT_EQ(bytes, 2.0 * double(parameters.total + parameters.shared_copies));
      ++num_plain;
    } else {
      const double bits = dtype_bits(config.quant.dtype);  // of nearly all parameters
      EXPECT_GT(bytes, double(parameters.total) * bits / 8);
      // Embedding and head stay in 16 bits: a tenth of the bytes of the smallest of these models.
      EXPECT_LT(bytes, double(parameters.total) * bits / 8 * 1.35);
    }
    if (name == "gpt-oss-20b") {
      EXPECT_EQ(bytes, 13'761'264'768.0) << "total_size of its published index";
    }
  }
  EXPECT_GE(num_plain, 10);
}

}  // namespace
}  // namespace moectl
