#include "core/model/inspect.h"

#include <gmock/gmock.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/model/safetensors.h"
#include "core/model/tensor_names.h"
#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using nlohmann::json;
using test::TempDir;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

const std::filesystem::path kDemo = test::source_dir() / "models/demo";
const std::filesystem::path kV3 = test::source_dir() / "tests/golden/deepseek_v3_a";
const std::filesystem::path kFp8 = test::source_dir() / "tests/golden/deepseek_v3_fp8_a";
const std::filesystem::path kV2 = test::source_dir() / "tests/golden/deepseek_v2_a";

// The figures of models/demo/README.md.
TEST(Inspect, CountsTheDemo) {
  InspectReport r = inspect_checkpoint(kDemo);
  EXPECT_TRUE(r.usable());
  EXPECT_EQ(r.architecture, "DeepseekV3ForCausalLM");
  EXPECT_EQ(r.parameters.total, 25'377'216);
  EXPECT_EQ(r.parameters.main, 21'558'176);
  EXPECT_EQ(r.parameters.mtp, 3'819'040);
  EXPECT_EQ(r.parameters.shared_copies, 2 * 4096 * 256);
  EXPECT_EQ(r.parameters.active, 6'747'040);
  EXPECT_EQ(r.num_tensors, 1313);
  EXPECT_EQ(r.num_bytes, 31'861'552);
  ASSERT_EQ(r.files.size(), 2u);
  EXPECT_EQ(r.files[0].name, "model-00001-of-00002.safetensors");
  EXPECT_EQ(r.files[0].num_tensors + r.files[1].num_tensors, 1313);
  EXPECT_EQ(r.files[0].num_bytes + r.files[1].num_bytes, 31'861'552);
  ASSERT_EQ(r.layers.size(), 7u);
  EXPECT_TRUE(r.layers[6].mtp);
  EXPECT_EQ(r.layers[6].parameters, 3'819'040);
  EXPECT_EQ(r.kv_bytes_f32, 7 * (128 + 32) * 4);
  EXPECT_EQ(r.kv_bytes_bf16, 7 * (128 + 32) * 2);
  int64_t bytes = 0, tensors = 0;
  for (const auto& d : r.dtypes) bytes += d.num_bytes, tensors += d.num_tensors;
  EXPECT_EQ(bytes, r.num_bytes);
  EXPECT_EQ(tensors, r.num_tensors);
}

TEST(Inspect, FindsEveryTensorOfTheGoldenCheckpoints) {
  for (const auto& dir : {kV3, kFp8, kV2}) {
    InspectReport r = inspect_checkpoint(dir);
    EXPECT_TRUE(r.usable()) << to_text(r);
    EXPECT_EQ(r.unexpected.count, 0) << to_text(r);
    EXPECT_EQ(r.parameters.mtp, 0);
  }
}

// Numbers are parameters, scales and zero points are not, however both are packed: as many as the same model has in
// bf16.
TEST(Inspect, CountsQuantisedCheckpoints) {
  struct Case {
    const char* name;
    const char* dtype;
    const char* text;
  };
  for (const Case& c : std::vector<Case>{{"deepseek_v3_int4", "i4", "pack-quantized: i4, one scale for each 32 inputs"},
                                         {"qwen3_moe_int4_zp", "u4", "pack-quantized: u4"},
                                         {"deepseek_v3_awq", "u4", "awq: u4"},
                                         {"qwen3_moe_int8", "i8", "pack-quantized: i8"},
                                         {"qwen3_moe_mxfp4", "f4_e2m1", "mxfp4-pack-quantized: f4_e2m1"},
                                         {"gpt_oss_mxfp4", "f4_e2m1", "mxfp4: f4_e2m1"},
                                         {"qwen3_moe_fp8_channel", "f8_e4m3", "one scale for each output"},
                                         {"qwen3_moe_fp8_tensor", "f8_e4m3", "fp8: f8_e4m3"}}) {
    SCOPED_TRACE(c.name);
    const std::filesystem::path dir = test::source_dir() / "tests/golden" / c.name;
    const InspectReport r = inspect_checkpoint(dir);
    EXPECT_TRUE(r.usable()) << to_text(r);
    EXPECT_EQ(r.unexpected.count, 0) << to_text(r);
    EXPECT_THAT(to_text(r), HasSubstr(c.text));
    TempDir config_only;
    config_only.write("config.json", test::read_file(dir / "config.json"));
    EXPECT_EQ(r.parameters.total, inspect_checkpoint(config_only.path()).parameters.total);
    int64_t numbers = 0, packed = 0, bytes = 0;
    for (const auto& d : r.dtypes) {
      bytes += d.num_bytes;
      if (d.dtype != DType::kI64) numbers += d.num_elements;
      if (dtype_name(d.dtype) == c.dtype) packed = d.num_elements;
    }
    EXPECT_EQ(bytes, r.num_bytes);
    EXPECT_GT(packed, r.parameters.total / 2);
    EXPECT_LT(packed, r.parameters.total);
    EXPECT_GE(numbers, r.parameters.total);  // scales are in this sum
  }
}

// The names of a config are those of its checkpoint, no more, no less, scales apart.
TEST(TensorNames, AreThoseOfTheCheckpoint) {
  for (const auto& dir : {kDemo, kV3, kFp8, kV2}) {
    Config config = read_config(dir);
    Checkpoint checkpoint = Checkpoint::open(dir);
    std::set<std::string> expected;
    for_each_tensor(config, [&](const TensorSpec& t) {
      EXPECT_TRUE(expected.insert(t.name).second) << t.name << " twice";
      EXPECT_NO_THROW(checkpoint.get(t.name, t.shape));
      if (config.quant.block_n > 0 && t.linear && checkpoint.find(t.name)->dtype == DType::kF8E4M3)
        expected.insert(t.name + "_scale_inv");
    });
    for (const auto& [name, t] : checkpoint.tensors()) EXPECT_TRUE(expected.contains(name)) << name;
  }
}

// config.json of published models, without weights, beside the figures of their papers and model cards in billions:
// DeepSeek-V3 671, 37 activated, 685 on the hub (which counts 0.04 of block scales as well); V2 236, 21;
// V2-Lite 15.7, 2.4.
TEST(Inspect, CountsPublishedModelsFromConfigAlone) {
  const char* v3 = R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048,
    "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "num_attention_heads": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "topk_group": 4, "v_head_dim": 128, "vocab_size": 129280,
    "first_k_dense_replace": 3, "rope_theta": 10000, "torch_dtype": "bfloat16"})";
  struct Case {
    const char* changes;
    double main, active, stored, tolerance;
    double kv_values;
  };
  for (
      const Case& c : std::vector<Case>{
          {"{}", 671, 37, 684.5, 0.5, 62 * 576},
          {R"({"model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
                "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 16, "num_key_value_heads": 16,
                "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_nextn_predict_layers": 0, "q_lora_rank": "NULL",
                "topk_method": "greedy", "vocab_size": 102400, "first_k_dense_replace": 1})",
           15.7, 2.4, 15.7, 0.1, 27 * 576},
          {R"({"model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
                "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "num_hidden_layers": 60,
                "num_nextn_predict_layers": 0, "topk_method": "group_limited_greedy", "topk_group": 3,
                "vocab_size": 102400, "first_k_dense_replace": 1})",
           236, 21, 236, 0.5, 60 * 576}}) {
    TempDir dir;
    json config = json::parse(v3);
    config.merge_patch(json::parse(c.changes));
    if (config["q_lora_rank"] == "NULL") config["q_lora_rank"] = nullptr;
    dir.write("config.json", config.dump());
    InspectReport r = inspect_checkpoint(dir.path());
    SCOPED_TRACE(to_text(r));
    ASSERT_TRUE(r.supported);
    EXPECT_FALSE(r.has_weights);
    EXPECT_FALSE(r.usable());
    const InspectReport::Parameters& p = r.parameters;
    EXPECT_NEAR(double(p.main) / 1e9, c.main, c.tolerance);
    EXPECT_NEAR(double(p.active) / 1e9, c.active, c.tolerance);
    EXPECT_NEAR(double(p.total + p.shared_copies) / 1e9, c.stored, c.tolerance);
    EXPECT_EQ(double(r.kv_bytes_bf16), 2 * c.kv_values);
    EXPECT_THAT(to_text(r), HasSubstr("no weights here"));
  }
}

// The largest config that is accepted: nothing overflows, nothing big is allocated.
TEST(Inspect, SurvivesTheLargestConfig) {
  TempDir dir;
  json config = json::parse(test::read_file(kV3 / "config.json"));
  config.merge_patch(
      json::parse(R"({"hidden_size": 131072, "intermediate_size": 1048576, "moe_intermediate_size": 131072,
    "n_routed_experts": 8192, "n_shared_experts": 64, "num_attention_heads": 4096, "num_key_value_heads": 4096,
    "q_lora_rank": 131072, "kv_lora_rank": 131072, "qk_nope_head_dim": 4096, "qk_rope_head_dim": 4096, "v_head_dim": 4096,
    "vocab_size": 16777216, "max_position_embeddings": 1073741824, "num_hidden_layers": 3})"));
  dir.write("config.json", config.dump());
  InspectReport r = inspect_checkpoint(dir.path());
  ASSERT_TRUE(r.supported);
  const double routed = 2.0 * 8192 * 3 * 131072 * 131072;
  EXPECT_DOUBLE_EQ(double(r.parameters.routed_experts), routed);
  EXPECT_GT(double(r.parameters.total), routed);
  EXPECT_GT(r.parameters.active, 0);
}

// The header and data of a checkpoint file, taken apart, changed and put together again.
struct Editable {
  json header;
  std::string data;

  explicit Editable(const std::filesystem::path& dir) {
    std::string file = test::read_file(dir / "model.safetensors");
    uint64_t n = 0;
    std::memcpy(&n, file.data(), sizeof n);
    header = json::parse(file.substr(8, n));
    data = file.substr(8 + n);
  }
  InspectReport inspect(const std::filesystem::path& config_dir) const {
    TempDir dir;
    dir.write("config.json", test::read_file(config_dir / "config.json"));
    dir.write("model.safetensors", test::safetensors(header.dump(), data));
    return inspect_checkpoint(dir.path());
  }
};

TEST(Inspect, ListsMissingWrongAndUnexpectedTensors) {
  {
    Editable e(kV3);
    e.header["model.other.weight"] = e.header["model.norm.weight"];
    e.header.erase("model.norm.weight");
    InspectReport r = e.inspect(kV3);
    EXPECT_FALSE(r.usable());
    EXPECT_THAT(r.missing.names, ElementsAre("model.norm.weight [128]"));
    EXPECT_THAT(r.unexpected.names, ElementsAre("model.other.weight"));
    EXPECT_THAT(to_text(r),
                AllOf(HasSubstr("missing"), HasSubstr("model.norm.weight [128]"), HasSubstr("model.other.weight")));
  }
  {
    Editable e(kV3);
    e.header["lm_head.weight"]["shape"] = {128, 512};
    e.header["model.layers.0.mlp.up_proj.weight"]["dtype"] = "U8";
    e.header["model.layers.0.mlp.up_proj.weight"]["shape"] = {256, 256};
    InspectReport r = e.inspect(kV3);
    EXPECT_FALSE(r.usable());
    EXPECT_THAT(r.wrong.names,
                ElementsAre("model.layers.0.mlp.up_proj.weight has shape [256, 256]; expected [256, 128]",
                            AllOf(HasSubstr("up_proj.weight has dtype u8"), HasSubstr("expected f32, bf16 or f16")),
                            "lm_head.weight has shape [128, 512]; expected [512, 128]"));
    EXPECT_EQ(r.missing.count, 0);
  }
  {
    Editable e(kFp8);  // a weight whose scales are gone
    e.header["x"] = e.header["model.layers.0.mlp.down_proj.weight_scale_inv"];
    e.header.erase("model.layers.0.mlp.down_proj.weight_scale_inv");
    InspectReport r = e.inspect(kFp8);
    EXPECT_THAT(r.missing.names, ElementsAre("model.layers.0.mlp.down_proj.weight_scale_inv [2, 4]"));
  }
  {
    Editable e(kFp8);  // scales of the wrong shape
    e.header["model.layers.0.mlp.down_proj.weight_scale_inv"]["shape"] = {4, 2};
    EXPECT_THAT(e.inspect(kFp8).wrong.names, ElementsAre(HasSubstr("expected [2, 4]")));
  }
  {
    Editable e(kV3);  // none of a V2 config's shapes fit: long lists are cut, counts are not
    InspectReport r = e.inspect(kDemo);
    EXPECT_EQ(int(r.missing.names.size()), InspectReport::kMaxListed);
    EXPECT_GT(r.missing.count, 400);
    EXPECT_THAT(to_text(r), HasSubstr("more"));
  }
}

// An MTP module that config.json promises: without any of its tensors the checkpoint loads without it, with some of
// them it is damaged. Its copies of embedding and head may be left out.
TEST(Inspect, MissingMtpModule) {
  TempDir dir;
  json config = json::parse(test::read_file(kV3 / "config.json"));
  config["num_nextn_predict_layers"] = 1;
  dir.write("config.json", config.dump());
  int64_t required = 0;
  std::vector<std::string> copies;
  for_each_tensor(read_config(dir.path()), [&](const TensorSpec& t) {
    if (t.shared_copy) copies.push_back(t.name);
    if (t.layer == 3 && !t.shared_copy) ++required;
  });
  EXPECT_THAT(copies, ElementsAre("model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"));

  Editable e(kV3);
  InspectReport r = e.inspect(dir.path());
  EXPECT_TRUE(r.usable()) << to_text(r);
  EXPECT_EQ(r.mtp_left_out, 1);
  EXPECT_EQ(r.layers.size(), 3u);
  EXPECT_EQ(r.parameters.total, inspect_checkpoint(kV3).parameters.total);
  EXPECT_THAT(to_text(r), HasSubstr("promises 1 module, but there are no tensors of them"));
  EXPECT_EQ(to_json(r)["check"]["mtp_modules_left_out"], 1);

  e.header["model.layers.3.enorm.weight"] = e.header["model.norm.weight"];
  e.header.erase("model.norm.weight");
  r = e.inspect(dir.path());
  EXPECT_EQ(r.mtp_left_out, 0);
  EXPECT_EQ(r.missing.count, required);  // without enorm, with the norm that was taken for it
  EXPECT_FALSE(r.usable());
}

TEST(Inspect, UnsupportedConfigIsReportedWithItsReason) {
  TempDir dir;
  json config = json::parse(test::read_file(kV3 / "config.json"));
  config["model_type"] = "qwen3_next";
  dir.write("config.json", config.dump());
  InspectReport r = inspect_checkpoint(dir.path());
  EXPECT_FALSE(r.supported);
  EXPECT_THAT(r.unsupported, AllOf(HasSubstr("`model_type`"), HasSubstr("deepseek_v3")));
  EXPECT_THAT(to_text(r), AllOf(HasSubstr("qwen3_next"), HasSubstr("no: ")));
  EXPECT_EQ(to_json(r)["supported"], false);
  EXPECT_THAT(to_json(r)["unsupported"].get<std::string>(), HasSubstr("qwen3_next"));

  dir.write("model.safetensors", test::read_file(kV3 / "model.safetensors"));  // with weights: they are counted
  r = inspect_checkpoint(dir.path());
  EXPECT_FALSE(r.supported);
  EXPECT_TRUE(r.has_weights);
  EXPECT_EQ(r.num_tensors, 139);
  EXPECT_EQ(r.parameters.total, inspect_checkpoint(kV3).parameters.total);
}

TEST(Inspect, RefusesDamagedOnes) {
  TempDir dir;
  EXPECT_EQ(test::failure_of([&] { inspect_checkpoint(dir.path() / "nowhere"); }).code, Code::kNotFound);
  EXPECT_EQ(test::failure_of([&] { inspect_checkpoint(dir.path()); }).code, Code::kNotFound);
  dir.write("config.json", "{");
  EXPECT_EQ(test::failure_of([&] { inspect_checkpoint(dir.path()); }).code, Code::kBadData);
  dir.write("config.json", test::read_file(kV3 / "config.json"));
  dir.write("model.safetensors", test::read_file(kV3 / "model.safetensors").substr(0, 100'000));
  test::Failure f = test::failure_of([&] { inspect_checkpoint(dir.path()); });
  EXPECT_EQ(f.code, Code::kBadData);
  EXPECT_THAT(f.message, HasSubstr("truncated"));
}

TEST(Inspect, NamesCannotDriveTheTerminal) {
  Editable e(kV3);
  e.header["evil\x1b[2J\n\xc2\x9b name"] = e.header["model.norm.weight"];
  e.header.erase("model.norm.weight");
  const std::string text = to_text(e.inspect(kV3));
  EXPECT_THAT(text, AllOf(HasSubstr("evil\\x1b[2J\\x0a\\xc2\\x9b name"), Not(HasSubstr("\x1b"))));
}

TEST(Inspect, Text) {
  const std::string text = to_text(inspect_checkpoint(kDemo));
  for (const char* part : {"DeepseekV3ForCausalLM (deepseek_v3)", "6 (1 dense, 5 MoE) + 1 MTP module", "MLA, 8 heads",
                           "latent 128 + RoPE key 32", "32 routed, 4 for each token from 2 of 4 groups; 1 shared",
                           "4,096", "2,048 tokens", "25,377,216", "21,558,176", "3,819,040", "6,747,040", "not counted",
                           "2 files, 1,313 tensors, 31.9 MB (31,861,552 bytes)", "128 x 128",
                           "4,480 bytes a token in f32", "2,240 in bf16", "all that it implies are here"})
    EXPECT_THAT(text, HasSubstr(part));
  // Lines of a terminal's width, no tabs, no trailing blanks.
  std::string line;
  for (char ch : text) {
    if (ch != '\n') {
      line += ch;
      continue;
    }
    EXPECT_LE(line.size(), 120u) << line;
    EXPECT_FALSE(line.ends_with(' ')) << line;
    line.clear();
  }
  EXPECT_THAT(line, IsEmpty());
}

TEST(Inspect, Json) {
  const json j = json::parse(to_json(inspect_checkpoint(kDemo)).dump());
  EXPECT_EQ(j["supported"], true);
  EXPECT_EQ(j["usable"], true);
  EXPECT_EQ(j["parameters"]["total"], 25'377'216);
  EXPECT_EQ(j["parameters"]["active_per_token"], 6'747'040);
  EXPECT_EQ(j["weights"]["dtypes"]["f8_e4m3"]["bytes"], 23'093'248);
  EXPECT_EQ(j["weights"]["files"].size(), 2u);
  EXPECT_EQ(j["layers"].size(), 7u);
  EXPECT_EQ(j["layers"][0]["feed_forward"], "dense");
  EXPECT_EQ(j["kv_bytes_per_token"]["f32"], 4480);
  EXPECT_EQ(j["config"]["quantization"]["weight_block_size"], json({128, 128}));
  EXPECT_EQ(j["check"]["missing"]["count"], 0);
}

}  // namespace
}  // namespace moectl
