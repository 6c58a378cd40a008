// Loading: what cannot fit is refused before anything is allocated, and damaged or contradictory tensors by name.
#include "core/model/weights.h"

#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/memory.h"
#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

TEST(Memory, IsKnownAndPositive) {
  EXPECT_GT(available_memory_bytes(), 1 << 20);
}

// An embedding of 4 TB in a sparse file: valid headers, no such memory.
TEST(LoadWeights, RefusesWhatCannotFit) {
  const auto dir = std::filesystem::temp_directory_path() / fmt::format("moectl-weights-{}", ::getpid());
  std::filesystem::create_directories(dir);
#ifdef __SANITIZE_THREAD__  // its shadow memory leaves no hole of 4 TB
  const int64_t num_bytes = int64_t{1} << 39;
#else
  const int64_t num_bytes = int64_t{1} << 42;
#endif
  Config config = read_config("models/demo");
  config.hidden_size = 4096;
  config.vocab_size = int32_t(num_bytes / 4 / config.hidden_size);
  std::string header =
      fmt::format(R"({{"model.embed_tokens.weight":{{"dtype":"F32","shape":[{},{}],"data_offsets":[0,{}]}}}})",
                  config.vocab_size, config.hidden_size, num_bytes);
  {
    std::ofstream out(dir / "model.safetensors", std::ios::binary);
    const uint64_t size = header.size();
    out.write(reinterpret_cast<const char*>(&size), 8);
    out << header;
  }
  std::error_code ec;
  std::filesystem::resize_file(dir / "model.safetensors", 8 + header.size() + uint64_t(num_bytes), ec);
  if (ec) {
    std::filesystem::remove_all(dir);
    GTEST_SKIP() << "this file system holds no sparse file of 4 TB: " << ec.message();
  }
  const Checkpoint checkpoint = Checkpoint::open(dir);
  auto ops = make_ops({});
  try {
    load_weights(config, checkpoint, *ops);
    ADD_FAILURE() << "loaded";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kResourceExhausted);
    EXPECT_NE(std::string(e.what()).find("are available"), std::string::npos) << e.what();
  }
  std::filesystem::remove_all(dir);
}

// A golden checkpoint taken apart, to be changed and loaded.
struct Edited {
  nlohmann::json config, header;
  std::string data;

  explicit Edited(const char* name) {
    const auto dir = test::source_dir() / "tests/golden" / name;
    config = nlohmann::json::parse(test::read_file(dir / "config.json"));
    const std::string file = test::read_file(dir / "model.safetensors");
    uint64_t n = 0;
    std::memcpy(&n, file.data(), sizeof n);
    header = nlohmann::json::parse(file.substr(8, n));
    data = file.substr(8 + n);
  }
  char* bytes(const std::string& tensor) {
    return data.data() + header.at(tensor).at("data_offsets").at(0).get<int64_t>();
  }
  void rename(const std::string& from, const std::string& to) {
    header[to] = header.at(from);
    header.erase(from);
  }
  // The message of the refusal.
  std::string refusal() const {
    test::TempDir dir;
    dir.write("config.json", config.dump());
    dir.write("model.safetensors", test::safetensors(header.dump(), data));
    const test::Failure f = test::failure_of([&] {
      auto ops = make_ops({});
      load_weights(read_config(dir.path()), Checkpoint::open(dir.path()), *ops);
    });
    EXPECT_EQ(f.code, Code::kBadData) << f.message;
    return f.message;
  }
};

TEST(LoadWeights, RefusesDamagedQuantizedTensors) {
  using testing::AllOf;
  using testing::HasSubstr;
  const std::string experts = "model.layers.1.mlp.experts.", gate = experts + "0.gate_proj.";
  {
    Edited e("gpt_oss_mxfp4");
    e.bytes(experts + "down_proj_scales")[5] = char(0xff);
    EXPECT_THAT(e.refusal(), AllOf(HasSubstr(experts + "down_proj_blocks"), HasSubstr("(mxfp4): the scale of block"),
                                   HasSubstr("nan")));
  }
  {
    Edited e("gpt_oss_mxfp4");
    e.rename(experts + "down_proj_scales", "other");
    EXPECT_THAT(e.refusal(), HasSubstr(experts + "down_proj_scales [6, 64, 2] is missing"));
  }
  {
    Edited e("gpt_oss_mxfp4");
    e.header[experts + "gate_up_proj_blocks"]["shape"] = {6, 64, 4, 16};
    EXPECT_THAT(e.refusal(),
                AllOf(HasSubstr("model.safetensors"), HasSubstr("has shape [6, 64, 4, 16]; expected [6, 128, 2, 16]")));
  }
  {
    Edited e("deepseek_v3_int4");
    e.bytes(gate + "weight_shape")[0] = 33;
    EXPECT_THAT(e.refusal(), AllOf(HasSubstr(gate + "weight_shape says [33, 64]"), HasSubstr("[32, 64]")));
  }
  {
    Edited e("deepseek_v3_int4");
    const char inf[2] = {char(0x80), char(0x7f)};
    std::memcpy(e.bytes(gate + "weight_scale"), inf, sizeof inf);
    EXPECT_THAT(e.refusal(), AllOf(HasSubstr(gate + "weight_packed"), HasSubstr("the scale of block (0, 0)")));
  }
  {
    Edited e("deepseek_v3_int4");
    e.config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 48;
    EXPECT_THAT(e.refusal(), AllOf(HasSubstr("64 inputs"), HasSubstr("pack-quantized group_size, 48")));
  }
  {
    Edited e("deepseek_v3_int4");  // read as what it is not
    e.config.erase("quantization_config");
    EXPECT_THAT(e.refusal(), HasSubstr("is missing"));
  }
  {
    Edited e("deepseek_v3_int4");  // one expert in bf16
    e.rename(gate + "weight_packed", gate + "weight");
    e.rename(gate + "weight_scale", "unused");
    e.header[gate + "weight"] = {
        {"dtype", "BF16"}, {"shape", {32, 64}}, {"data_offsets", {e.data.size(), e.data.size() + 4096}}};
    e.data += std::string(4096, '\0');
    e.header["rest"] = {{"dtype", "I32"}, {"shape", {256}}, {"data_offsets", {0, 0}}};
    const Edited original("deepseek_v3_int4");
    e.header["rest"]["data_offsets"] = original.header.at(gate + "weight_packed").at("data_offsets");
    EXPECT_THAT(e.refusal(), AllOf(HasSubstr("is i4 with bf16 scales of 1 x 32"), HasSubstr(gate + "weight is bf16"),
                                   HasSubstr("stored alike")));
  }
  {
    Edited e("deepseek_v3_awq");
    e.header[gate + "qweight"]["dtype"] = "F32";
    EXPECT_THAT(e.refusal(), HasSubstr(gate + "qweight has dtype f32; expected i32 (quantization: awq)"));
  }
  {
    Edited e("qwen3_moe_fp8_channel");
    e.bytes(gate + "weight")[7] = char(0x7f);
    EXPECT_THAT(e.refusal(), AllOf(HasSubstr(gate + "weight"), HasSubstr("element (0, 7) is NaN")));
  }
}

// A shard's loader reads nothing of other ranks' experts.
TEST(LoadShards, DamageInExpertsOfOtherRanksIsNotRead) {
  Edited e("qwen3_moe_fp8_channel");
  e.bytes("model.layers.1.mlp.experts.0.gate_proj.weight")[7] = char(0x7f);  // NaN
  test::TempDir dir;
  dir.write("config.json", e.config.dump());
  dir.write("model.safetensors", test::safetensors(e.header.dump(), e.data));
  const Config config = read_config(dir.path());
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  auto ops = make_ops({}), other_ops = make_ops({});
  const ShardTarget damaged = {*ops, rank_shard(config, expert_parallel(2), 0, {0, 1, 2, 3})},
                    sound = {*other_ops, rank_shard(config, expert_parallel(2), 1, {4, 5, 6, 7})};
  EXPECT_EQ(load_shards(config, checkpoint, {&sound, 1}).size(), 1u);
  const test::Failure f = test::failure_of([&] {
    load_shards(config, checkpoint, std::vector<ShardTarget>{sound, damaged});
  });
  EXPECT_EQ(f.code, Code::kBadData);
  EXPECT_THAT(f.message, testing::HasSubstr("experts.0.gate_proj.weight"));
}

}  // namespace
}  // namespace moectl
