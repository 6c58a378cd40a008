#include "core/model/config.h"

#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using nlohmann::json;
using test::failure_of;
using test::TempDir;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

json golden(const char* name) {
  return json::parse(test::read_file(test::source_dir() / "tests/golden" / name / "config.json"));
}

// deepseek_v3_a's config.json with `changes` merged in (RFC 7396, so a null removes; see also `set`).
json v3(const char* changes = "{}") {
  json j = golden("deepseek_v3_a");
  j.merge_patch(json::parse(changes));
  return j;
}
json v2(const char* changes = "{}") {
  json j = golden("deepseek_v2_a");
  j.merge_patch(json::parse(changes));
  return j;
}
Config parse(const json& j) {
  return parse_config(j, "config.json");
}

TEST(Config, ReadsTheDemo) {
  Config c = read_config(test::source_dir() / "models/demo");
  EXPECT_EQ(c.model_type, "deepseek_v3");
  EXPECT_EQ(c.architecture, "DeepseekV3ForCausalLM");
  EXPECT_EQ(c.dtype, DType::kBF16);
  EXPECT_EQ(c.vocab_size, 4096);
  EXPECT_EQ(c.hidden_size, 256);
  EXPECT_EQ(c.intermediate_size, 768);
  EXPECT_EQ(c.num_layers, 6);
  EXPECT_EQ(c.num_heads, 8);
  EXPECT_EQ(c.max_position_embeddings, 2048);
  EXPECT_FLOAT_EQ(c.rms_norm_eps, 1e-6f);
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_EQ(c.num_mtp_layers, 1);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(1));
  EXPECT_EQ(c.mla.q_lora_rank, 128);
  EXPECT_EQ(c.mla.kv_lora_rank, 128);
  EXPECT_EQ(c.mla.qk_nope_head_dim, 64);
  EXPECT_EQ(c.mla.qk_rope_head_dim, 32);
  EXPECT_EQ(c.mla.v_head_dim, 64);
  EXPECT_EQ(c.rope.dim, 32);
  EXPECT_FLOAT_EQ(c.rope.theta, 10000.0f);
  EXPECT_TRUE(c.rope.interleaved);
  EXPECT_FLOAT_EQ(c.rope.factor, 1.0f);
  EXPECT_EQ(c.moe.num_experts, 32);
  EXPECT_EQ(c.moe.num_experts_per_tok, 4);
  EXPECT_EQ(c.moe.moe_intermediate_size, 128);
  EXPECT_EQ(c.moe.num_shared_experts, 1);
  EXPECT_EQ(c.moe.scoring, GateScoring::kSigmoid);
  EXPECT_EQ(c.moe.select, GateSelect::kGroupTop2);
  EXPECT_EQ(c.moe.num_groups, 4);
  EXPECT_EQ(c.moe.num_topk_groups, 2);
  EXPECT_TRUE(c.moe.has_correction_bias);
  EXPECT_TRUE(c.moe.normalize_topk);
  EXPECT_FLOAT_EQ(c.moe.routed_scaling_factor, 2.5f);
  EXPECT_EQ(c.quant.dtype, DType::kF8E4M3);
  EXPECT_EQ(c.quant.block_n, 128);
  EXPECT_EQ(c.quant.block_k, 128);
  EXPECT_FLOAT_EQ(c.softmax_scale, 1.0f / std::sqrt(96.0f));
  ASSERT_EQ(c.layers.size(), 7u);
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(c.layers[i].attention, AttentionKind::kMla);
    EXPECT_EQ(c.layers[i].feed_forward, i == 0 ? FeedForwardKind::kDense : FeedForwardKind::kMoe);
  }
}

TEST(Config, ReadsDeepseekV2) {
  Config c = parse(v2());
  EXPECT_EQ(c.mla.q_lora_rank, 0);
  EXPECT_EQ(c.moe.scoring, GateScoring::kSoftmax);
  EXPECT_EQ(c.moe.select, GateSelect::kGreedy);
  EXPECT_FALSE(c.moe.has_correction_bias);
  EXPECT_FALSE(c.moe.normalize_topk);
  EXPECT_FLOAT_EQ(c.moe.routed_scaling_factor, 1.0f);
  EXPECT_EQ(c.moe.num_shared_experts, 2);
  EXPECT_TRUE(c.rope.interleaved);
  EXPECT_EQ(c.quant.dtype, DType::kF32);

  c = parse(
      v2(R"({"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 3, "routed_scaling_factor": 16.0})"));
  EXPECT_EQ(c.moe.select, GateSelect::kGroupMax);
  EXPECT_EQ(c.moe.num_groups, 4);
  EXPECT_EQ(c.moe.num_topk_groups, 3);
  EXPECT_FLOAT_EQ(c.moe.routed_scaling_factor, 16.0f);

  c = parse(v2(R"({"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true})"));
  EXPECT_EQ(c.moe.select, GateSelect::kGroupTop2);
  EXPECT_EQ(c.moe.scoring, GateScoring::kSigmoid);
  EXPECT_TRUE(c.moe.normalize_topk);

  // transformers ignores norm_topk_prob in V2.
  EXPECT_FALSE(parse(v2(R"({"norm_topk_prob": true})")).moe.normalize_topk);
}

TEST(Config, MlaOptions) {
  EXPECT_TRUE(parse(v3(R"({"attention_bias": true})")).mla.bias);
  EXPECT_FALSE(parse(v3(R"({"rope_interleave": false})")).rope.interleaved);
  // Defaults of transformers' DeepseekV3Config; merge_patch removes the fields.
  const Config c = parse(v3(R"({"n_group": null, "topk_group": null, "first_k_dense_replace": null,
                                "routed_scaling_factor": null, "num_hidden_layers": 4})"));
  EXPECT_EQ(c.moe.num_groups, 8);
  EXPECT_EQ(c.moe.num_topk_groups, 4);
  EXPECT_FLOAT_EQ(c.moe.routed_scaling_factor, 2.5f);
  EXPECT_EQ(c.layers[2].feed_forward, FeedForwardKind::kDense);
  EXPECT_EQ(c.layers[3].feed_forward, FeedForwardKind::kMoe);
}

TEST(Config, GreedyIgnoresGroups) {
  Config c = parse(v2(R"({"n_group": 5, "topk_group": 0})"));
  EXPECT_EQ(c.moe.num_groups, 1);
  EXPECT_EQ(c.moe.num_topk_groups, 1);
  c = parse(v2(R"({"n_group": null, "topk_group": null})"));
  EXPECT_EQ(c.moe.num_groups, 1);
}

TEST(Config, KimiK2IsReadAsDeepseekV3) {
  Config c = parse(v3(R"({"model_type": "kimi_k2", "n_group": 1, "topk_group": 1})"));
  EXPECT_EQ(c.model_type, "kimi_k2");
  EXPECT_EQ(c.moe.num_groups, 1);
  EXPECT_TRUE(c.moe.has_correction_bias);
}

TEST(Config, OldAndNewSpellings) {
  EXPECT_EQ(parse(v3(R"({"torch_dtype": null, "dtype": "float32"})")).dtype, DType::kF32);
  EXPECT_EQ(parse(v3(R"({"torch_dtype": "float16"})")).dtype, DType::kF16);
  EXPECT_EQ(parse(v3(R"({"dtype": "bfloat16"})")).dtype, DType::kBF16);  // both, and equal

  Config c = parse(v3(R"({"rope_theta": null, "rope_scaling": null,
                          "rope_parameters": {"rope_theta": 50000.0, "rope_type": "default"}})"));
  EXPECT_FLOAT_EQ(c.rope.theta, 50000.0f);
  EXPECT_FLOAT_EQ(c.rope.factor, 1.0f);

  c = parse(v3(R"({"num_nextn_predict_layers": null, "num_mtp_layers": 2})"));
  EXPECT_EQ(c.num_mtp_layers, 2);
  EXPECT_EQ(c.layers.size(), 5u);
  c = parse(v3(R"({"n_routed_experts": null, "num_local_experts": 32})"));
  EXPECT_EQ(c.moe.num_experts, 32);
}

TEST(Config, EosMayBeAList) {
  EXPECT_THAT(parse(v3(R"({"eos_token_id": [1, 163586]})")).eos_token_ids, ElementsAre(1, 163586));
  EXPECT_TRUE(parse(v3(R"({"eos_token_id": null})")).eos_token_ids.empty());
  EXPECT_EQ(parse(v3(R"({"bos_token_id": null})")).bos_token_id, -1);
}

TEST(Config, LayerKinds) {
  auto kinds = [](const Config& c) {
    std::string s;
    for (const LayerConfig& l : c.layers) s += l.feed_forward == FeedForwardKind::kMoe ? 'm' : 'd';
    return s;
  };
  EXPECT_EQ(kinds(parse(v3())), "dmm");
  EXPECT_EQ(kinds(parse(v3(R"({"first_k_dense_replace": 0})"))), "mmm");
  EXPECT_EQ(kinds(parse(v3(R"({"first_k_dense_replace": 3})"))), "ddd");
  EXPECT_EQ(kinds(parse(v3(R"({"num_hidden_layers": 6, "moe_layer_freq": 2})"))), "ddmdmd");
  EXPECT_EQ(kinds(parse(v3(R"({"num_nextn_predict_layers": 1})"))), "dmmm");
}

// Expected figures: transformers 5.17, yarn_apply_mscale and _compute_yarn_parameters.
TEST(Config, Yarn) {
  const char* v3_yarn = R"({"max_position_embeddings": 163840, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
      "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                       "original_max_position_embeddings": 4096, "type": "yarn"}})";
  Config c = parse(v3(v3_yarn));
  EXPECT_FLOAT_EQ(c.rope.factor, 40.0f);
  EXPECT_FLOAT_EQ(c.rope.beta_fast, 32.0f);
  EXPECT_FLOAT_EQ(c.rope.beta_slow, 1.0f);
  EXPECT_EQ(c.rope.original_max_position, 4096);
  EXPECT_TRUE(c.rope.truncate);
  EXPECT_FLOAT_EQ(*c.rope.attention_factor, 1.0f);
  EXPECT_FLOAT_EQ(c.softmax_scale, 0.1352337788608801f);

  // The same as rope_parameters.
  json j = v3(v3_yarn);
  j["rope_parameters"] = j["rope_scaling"];
  j["rope_parameters"]["rope_type"] = j["rope_parameters"]["type"];
  j["rope_parameters"]["rope_theta"] = 10000.0;
  j.erase("rope_scaling");
  j.erase("rope_theta");
  Config n = parse(j);
  EXPECT_EQ(n.softmax_scale, c.softmax_scale);
  EXPECT_EQ(n.rope.theta, c.rope.theta);
  EXPECT_EQ(n.rope.factor, c.rope.factor);

  auto yarn = [](json j, const char* changes) {
    j["qk_nope_head_dim"] = 128, j["qk_rope_head_dim"] = 64;
    j["rope_scaling"] = json::parse(R"({"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096})");
    j["rope_scaling"].merge_patch(json::parse(changes));
    return parse(j);
  };
  c = yarn(v2(), R"({"mscale": 0.707, "mscale_all_dim": 0.707})");  // V2-Lite
  EXPECT_FLOAT_EQ(c.softmax_scale, 0.11472138679292612f);
  EXPECT_FLOAT_EQ(*c.rope.attention_factor, 1.0f);
  c = yarn(v3(),
           R"({"factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0})");  // Kimi K2
  EXPECT_FLOAT_EQ(c.softmax_scale, 0.13086079996295008f);
  EXPECT_FLOAT_EQ(c.rope.beta_fast, 1.0f);
  c = yarn(v3(), R"({"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5})");
  EXPECT_FLOAT_EQ(*c.rope.attention_factor, 1.0648216253695715f);
  c = yarn(v3(), "{}");  // neither: cos and sin take the paper's factor, the softmax none
  EXPECT_FLOAT_EQ(*c.rope.attention_factor, 1.3688879454113936f);
  EXPECT_FLOAT_EQ(c.softmax_scale, 1.0f / std::sqrt(192.0f));
  c = yarn(v3(), R"({"attention_factor": 0.5, "beta_fast": 0, "truncate": false})");
  EXPECT_FLOAT_EQ(*c.rope.attention_factor, 0.5f);
  EXPECT_FLOAT_EQ(c.rope.beta_fast, 32.0f);
  EXPECT_FALSE(c.rope.truncate);
}

TEST(Config, QuantisationOfV31) {
  Config c = parse(v3(R"({"quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                          "scale_fmt": "ue8m0", "weight_block_size": [128, 64]}})"));
  EXPECT_EQ(c.quant.dtype, DType::kF8E4M3);
  EXPECT_EQ(c.quant.block_n, 128);
  EXPECT_EQ(c.quant.block_k, 64);
}

// Every refusal names the file, the field and its value.
TEST(Config, RefusesWhatItDoesNotUnderstand) {
  struct Case {
    const char* changes;
    std::vector<std::string> message;
  };
  const char* fp8 = R"("quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128])";
  std::vector<std::string> quants;
  for (const char* q :
       {R"(, "quant_method": "gptq")", R"(, "fmt": "e5m2")", R"(, "activation_scheme": "none")",
        R"(, "scale_fmt": "log2")", R"(, "weight_block_size": 128)", R"(, "weight_block_size": [128])",
        R"(, "weight_block_size": [0, 128])", R"(, "weight_block_size": [128, 1e9])", R"(, "quant_method": null)"})
    quants.push_back(std::string("{") + fp8 + q + "}}");
  std::vector<Case> cases = {
      {R"({"model_type": null})", {"`model_type`", "missing"}},
      {R"({"model_type": 3})", {"`model_type`", "3", "a string"}},
      {R"({"model_type": "llama"})", {"`model_type`", "\"llama\"", "deepseek_v2, deepseek_v3, "}},
      {R"({"model_type": "deepseek_v32"})", {"\"deepseek_v32\""}},
      {R"({"architectures": ["DeepseekV3ForSequenceClassification"]})", {"`architectures`", "ForCausalLM"}},
      {R"({"architectures": "DeepseekV3ForCausalLM"})", {"`architectures`"}},
      {R"({"architectures": []})", {"`architectures`"}},
      {R"({"hidden_act": "gelu"})", {"`hidden_act`", "\"gelu\"", "\"silu\""}},
      {R"({"attention_bias": 1})", {"`attention_bias`", "true or false"}},
      {R"({"mlp_bias": true})", {"`mlp_bias`"}},
      {R"({"sliding_window": 4096})", {"`sliding_window`", "4096"}},
      {R"({"use_sliding_window": true})", {"`use_sliding_window`"}},
      {R"({"scoring_func": "tanh"})", {"`scoring_func`", "\"tanh\""}},
      {R"({"topk_method": "random"})", {"`topk_method`", "\"random\""}},
      {R"({"dtype": "float32"})", {"`torch_dtype`", "the same as `dtype`"}},
      {R"({"torch_dtype": "int8"})", {"`torch_dtype`", "\"int8\""}},
      {R"({"rope_scaling": {"rope_type": "dynamic", "factor": 2}})", {"`rope_scaling.rope_type`", "\"dynamic\""}},
      {R"({"rope_scaling": {"rope_type": "yarn", "type": "default"}})", {"`rope_scaling.type`", "the same as"}},
      {R"({"rope_scaling": "yarn"})", {"`rope_scaling`", "expected an object"}},
      {R"({"rope_scaling": {"type": "yarn"}})", {"`rope_scaling.factor`", "missing"}},
      {R"({"rope_scaling": {"type": "yarn", "factor": 0.5}})", {"`rope_scaling.factor`", "0.5"}},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32}})",
       {"`rope_scaling.beta_fast`"}},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 0}})", {"original_max"}},
      {R"({"rope_parameters": {"rope_type": "default", "rope_theta": 7000}})",
       {"`rope_parameters.rope_theta`", "7000"}},
      {R"({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}})", {"partial_rotary_factor"}},
      {R"({"rope_theta": 0})", {"`rope_theta`", "0"}},
      {R"({"rope_theta": "10000"})", {"`rope_theta`", "\"10000\"", "a number"}},
      {R"({"qk_rope_head_dim": 15})", {"`qk_rope_head_dim`", "15", "even"}},
      {R"({"num_key_value_heads": 2})", {"`num_key_value_heads`", "2"}},
      {R"({"hidden_size": null})", {"`hidden_size`", "missing"}},
      {R"({"hidden_size": 0})", {"`hidden_size`", "0", "from 1"}},
      {R"({"hidden_size": -128})", {"`hidden_size`", "-128"}},
      {R"({"hidden_size": 128.0})", {"`hidden_size`", "128.0", "an integer"}},
      {R"({"hidden_size": "128"})", {"`hidden_size`", "an integer"}},
      {R"({"hidden_size": true})", {"`hidden_size`", "an integer"}},
      {R"({"hidden_size": [128]})", {"`hidden_size`", "an integer"}},
      {R"({"hidden_size": 4294967424})", {"`hidden_size`", "4294967424"}},
      {R"({"hidden_size": 18446744073709551615})", {"`hidden_size`", "18446744073709551615"}},
      {R"({"hidden_size": 1e300})", {"`hidden_size`", "1e+300"}},
      {R"({"vocab_size": 16777217})", {"`vocab_size`", "16777217"}},
      {R"({"num_hidden_layers": 1001})", {"`num_hidden_layers`", "1001"}},
      {R"({"num_hidden_layers": 0})", {"`num_hidden_layers`"}},
      {R"({"intermediate_size": 2147483648})", {"`intermediate_size`"}},
      {R"({"num_attention_heads": 0})", {"`num_attention_heads`"}},
      {R"({"kv_lora_rank": 0})", {"`kv_lora_rank`"}},
      {R"({"q_lora_rank": 0})", {"`q_lora_rank`", "0"}},
      {R"({"q_lora_rank": null})", {"`q_lora_rank`", "missing"}},  // merge_patch removes the field
      {R"({"v_head_dim": 100000})", {"`v_head_dim`"}},
      {R"({"max_position_embeddings": 0})", {"`max_position_embeddings`"}},
      {R"({"rms_norm_eps": 0})", {"`rms_norm_eps`"}},
      {R"({"rms_norm_eps": -1e-6})", {"`rms_norm_eps`"}},
      {R"({"num_nextn_predict_layers": 17})", {"`num_nextn_predict_layers`", "17"}},
      {R"({"num_mtp_layers": 1})", {"`num_mtp_layers`", "the same as"}},
      {R"({"moe_layer_freq": 0})", {"`moe_layer_freq`"}},
      {R"({"n_routed_experts": 0})", {"`n_routed_experts`"}},
      {R"({"n_routed_experts": 100000})", {"`n_routed_experts`", "100000"}},
      {R"({"num_experts_per_tok": 0})", {"`num_experts_per_tok`"}},
      {R"({"num_experts_per_tok": 17})", {"`num_experts_per_tok`", "17", "16"}},
      {R"({"num_experts_per_tok": 9})", {"`num_experts_per_tok`", "9", "at most the 8 experts of 2 chosen groups"}},
      {R"({"n_group": 3})", {"`n_group`", "divisor"}},
      {R"({"n_group": 16, "topk_group": 8})", {"`n_group`", "at least two"}},
      {R"({"n_group": 0})", {"`n_group`"}},
      {R"({"topk_group": 5})", {"`topk_group`", "5", "to 4"}},
      {R"({"n_shared_experts": -1})", {"`n_shared_experts`"}},
      {R"({"routed_scaling_factor": 0})", {"`routed_scaling_factor`"}},
      {R"({"norm_topk_prob": "yes"})", {"`norm_topk_prob`"}},
      {R"({"eos_token_id": "</s>"})", {"`eos_token_id`"}},
      {R"({"eos_token_id": [1, -1]})", {"`eos_token_id`"}},
      {R"({"eos_token_id": [1, 18446744073709551615]})", {"`eos_token_id`"}},
      {R"({"eos_token_id": 16777216})", {"`eos_token_id`"}},
      {R"({"bos_token_id": 1.5})", {"`bos_token_id`"}},
      {R"({"quantization_config": []})", {"`quantization_config`", "expected an object"}},
  };
  for (const std::string& q : quants) cases.push_back({q.c_str(), {"`quantization_config."}});
  for (const Case& c : cases) {
    SCOPED_TRACE(c.changes);
    json changes = json::parse(c.changes);  // of two equal names the last counts
    test::Failure f = failure_of([&] { parse(v3(changes.dump().c_str())); });
    EXPECT_EQ(f.code, Code::kBadData);
    EXPECT_THAT(f.message, HasSubstr("config.json"));
    for (const std::string& part : c.message) EXPECT_THAT(f.message, HasSubstr(part));
  }
}

TEST(Config, NumbersThatAreNotFinite) {
  for (double x : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    json j = v3();
    j["rope_theta"] = x;
    EXPECT_THAT(failure_of([&] { parse(j); }).message, HasSubstr("`rope_theta`"));
  }
}

TEST(Config, TrainingFieldsAreIgnored) {
  EXPECT_NO_THROW(
      parse(v3(R"({"aux_loss_alpha": "x", "initializer_range": [], "use_cache": 5, "auto_map": {"a": "evil.py"},
                               "transformers_version": 4, "ep_size": 8, "pretraining_tp": 2, "attention_dropout": 0.5})")));
}

TEST(Config, Files) {
  TempDir dir;
  test::Failure f = failure_of([&] { read_config(dir.path() / "nowhere"); });
  EXPECT_EQ(f.code, Code::kNotFound);
  EXPECT_THAT(f.message, AllOf(HasSubstr("nowhere"), HasSubstr("no such folder")));
  f = failure_of([&] { read_config(dir.path()); });
  EXPECT_EQ(f.code, Code::kNotFound);
  EXPECT_THAT(f.message, HasSubstr("config.json"));

  for (const std::string& text :
       {std::string(), std::string("not json"), std::string("[]"), std::string("{"), std::string("null"),
        std::string(100'000, '['), std::string("{\"a\": \"\xff\"}"),
        std::string(R"({"hidden_size": 1, "hidden_size": 2})"), std::string(R"({"x": 1e999})")}) {
    SCOPED_TRACE(text.substr(0, 40));
    dir.write("config.json", text);
    f = failure_of([&] { read_config(dir.path()); });
    EXPECT_EQ(f.code, Code::kBadData);
    EXPECT_THAT(f.message, HasSubstr("config.json"));
  }
  std::filesystem::resize_file(dir.path() / "config.json", uintmax_t{1} << 40);  // sparse: nothing of it is read
  f = failure_of([&] { read_config(dir.path()); });
  EXPECT_EQ(f.code, Code::kBadData);
  EXPECT_THAT(f.message, HasSubstr("1099511627776 bytes"));
  std::filesystem::remove(dir.path() / "config.json");
  std::filesystem::create_directory(dir.path() / "config.json");
  EXPECT_THAT(failure_of([&] { read_config(dir.path()); }).message, HasSubstr("not a regular file"));
}

TEST(GenerationConfig, Defaults) {
  GenerationDefaults g = read_generation_defaults(test::source_dir() / "models/demo");
  EXPECT_FLOAT_EQ(*g.temperature, 0.6f);
  EXPECT_FLOAT_EQ(*g.top_p, 0.95f);
  EXPECT_FALSE(g.top_k || g.min_p || g.repetition_penalty);
  EXPECT_THAT(g.eos_token_ids, ElementsAre(1));

  g = read_generation_defaults(test::source_dir() / "tests/golden/deepseek_v3_a");  // has none
  EXPECT_FALSE(g.temperature || g.top_p);
  EXPECT_TRUE(g.eos_token_ids.empty());

  TempDir dir;
  dir.write("generation_config.json", R"({"temperature": null, "top_k": 50, "min_p": 0.1, "repetition_penalty": 1.1,
                                          "eos_token_id": [7, 8]})");
  g = read_generation_defaults(dir.path());
  EXPECT_FALSE(g.temperature);
  EXPECT_EQ(*g.top_k, 50);
  EXPECT_FLOAT_EQ(*g.min_p, 0.1f);
  EXPECT_FLOAT_EQ(*g.repetition_penalty, 1.1f);
  EXPECT_THAT(g.eos_token_ids, ElementsAre(7, 8));
  for (const char* bad : {R"({"temperature": -1})", R"({"temperature": "hot"})", R"({"temperature": 2.5})",
                          R"({"top_p": 1.5})", R"({"top_k": -2})", R"({"min_p": 2})", R"({"repetition_penalty": 0})",
                          R"({"repetition_penalty": 1e-40})", R"({"eos_token_id": -1})", "[]", "{"}) {
    SCOPED_TRACE(bad);
    dir.write("generation_config.json", bad);
    test::Failure f = failure_of([&] { read_generation_defaults(dir.path()); });
    EXPECT_EQ(f.code, Code::kBadData);
    EXPECT_THAT(f.message, HasSubstr("generation_config.json"));
  }
  dir.write("generation_config.json", R"({"top_p": 0})");
  const test::Failure f = failure_of([&] { read_generation_defaults(dir.path()); });
  EXPECT_EQ(f.code, Code::kBadData);
  EXPECT_THAT(f.message, HasSubstr("generation_config.json: `top_p` is 0; expected a number over 0 and at most 1"));
}

}  // namespace
}  // namespace moectl
