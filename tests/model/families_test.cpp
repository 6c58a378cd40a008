// The readers of the families: config.json files as their publishers write them, what a missing field stands for, and
// what is refused. Arithmetic is compared in tests/golden.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/model/config.h"
#include "core/model/inspect.h"
#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using nlohmann::json;
using test::failure_of;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;

Config parse(const json& j) {
  return parse_config(j, "config.json");
}

// tests/golden/NAME/config.json; the values of `changes` replace its own, "DROP" removes a field.
json golden(const std::string& name, const json& changes = json::object()) {
  json j = json::parse(test::read_file(test::source_dir() / "tests/golden" / name / "config.json"));
  for (const auto& [key, value] : changes.items())
    if (value == "DROP")
      j.erase(key);
    else
      j[key] = value;
  return j;
}

json published() {
  return json::parse(test::read_file(test::source_dir() / "tests/model/published_configs.json"));
}

// Parameter counts are those of papers and model cards, in billions: shapes and names that a config.json implies add up
// to them only when it was understood.
TEST(Families, PublishedConfigsLoadAndCount) {
  const json all = published();
  for (const auto& [name, entry] : all.items()) {
    SCOPED_TRACE(name);
    TempDir dir;
    dir.write("config.json", entry["config"].dump());
    const InspectReport r = inspect_checkpoint(dir.path());
    ASSERT_TRUE(r.supported) << r.unsupported;
    const double total = double(r.parameters.main) / 1e9, active = double(r.parameters.active) / 1e9;
    const double want = entry["billions"], want_active = entry["active"];
    EXPECT_NEAR(total, want, std::max(0.06, 0.01 * want));
    EXPECT_NEAR(active, want_active, 0.16 * want_active);  // cards round, and differ in what of the vocabulary counts
    EXPECT_THAT(to_text(r), HasSubstr("supported         yes"));
  }
}

// A field that nobody knows stops every architecture, wherever it stands.
TEST(Families, UnknownFieldsStopTheLoadWithTheirName) {
  const json all = published();
  for (const auto& [name, entry] : all.items()) {
    SCOPED_TRACE(name);
    json j = entry["config"];
    j["query_pre_attn_scalar"] = 224;
    EXPECT_THAT(failure_of([&] { parse(j); }).message,
                AllOf(HasSubstr("`query_pre_attn_scalar` is 224"), HasSubstr("remove it")));
    j = entry["config"];
    j["query_pre_attn_scalar"] = nullptr;  // absent
    j["_private"] = 1;
    j["unsloth_fixed"] = true;
    j["decoder_start_token_id"] = 0;
    EXPECT_NO_THROW(parse(j));
  }
  EXPECT_THAT(failure_of([] {
                parse(golden("qwen3_moe_a", {{"rope_scaling",
                                              {{"rope_type", "linear"}, {"factor", 2.0}, {"mrope_section", {1, 2}}}}}));
              }).message,
              HasSubstr("`rope_scaling.mrope_section`"));
}

TEST(Families, FieldsOfFeaturesMustBeOff) {
  struct Case {
    const char* checkpoint;
    json changes;
    std::vector<std::string> message;
  };
  const std::vector<Case> cases = {
      {"mixtral_a", {{"attention_bias", true}}, {"`attention_bias`", "false"}},
      {"mixtral_a", {{"head_dim", 31}}, {"`head_dim`", "even"}},
      {"mixtral_a", {{"num_key_value_heads", 3}}, {"`num_key_value_heads`", "divisor"}},
      {"mixtral_a", {{"partial_rotary_factor", 0.5}}, {"`partial_rotary_factor`"}},
      {"mixtral_a", {{"layer_types", {"sliding_attention", "full_attention", "full_attention"}}}, {"`sliding_window`"}},
      {"mixtral_a", {{"sliding_window", 0}}, {"`sliding_window`"}},
      {"mixtral_a", {{"norm_topk_prob", false}}, {"`norm_topk_prob`", "true"}},
      {"mixtral_a", {{"intermediate_size", 1 << 19}}, {"`intermediate_size`"}},
      {"qwen3_moe_a", {{"use_sliding_window", true}}, {"`sliding_window`", "null"}},
      {"qwen3_moe_a", {{"shared_expert_intermediate_size", 64}}, {"`shared_expert_intermediate_size`", "0"}},
      {"qwen3_moe_a", {{"layer_types", {"full_attention"}}}, {"`layer_types`", "3 layers"}},
      {"qwen3_moe_a", {{"layer_types", {"full_attention", "linear_attention", "full_attention"}}}, {"`layer_types`"}},
      {"qwen3_moe_a", {{"attn_logit_softcapping", 30.0}}, {"`attn_logit_softcapping` is 30.0"}},
      {"qwen2_moe_a", {{"shared_expert_intermediate_size", "DROP"}}, {"`shared_expert_intermediate_size`", "missing"}},
      {"glm4_moe_a", {{"partial_rotary_factor", 0.03}}, {"`partial_rotary_factor`", "even"}},
      {"glm4_moe_a", {{"scoring_func", "softmax"}}, {"`scoring_func`", "\"sigmoid\""}},
      {"glm4_moe_a", {{"n_group", 5}}, {"`n_group`", "divisor"}},
      {"gpt_oss_a", {{"swiglu_limit", 5.0}}, {"`swiglu_limit`", "7.0"}},
      {"gpt_oss_a", {{"layer_types", {"full_attention"}}}, {"`layer_types`", "4 layers"}},
      {"gpt_oss_a", {{"sliding_window", nullptr}}, {"`sliding_window`", "layer 0"}},
      {"gpt_oss_a", {{"rope_scaling", nullptr}, {"rope_parameters", nullptr}}, {"`rope_parameters`"}},
      {"olmoe_a", {{"clip_qkv", 8.0}}, {"`clip_qkv`", "8.0"}},
      {"olmoe_a", {{"head_dim", 32}}, {"`head_dim`", "hidden_size / num_attention_heads"}},
      {"minimax_m2_a", {{"rotary_dim", 16}}, {"`rotary_dim`", "partial_rotary_factor"}},
      {"minimax_m2_a", {{"attn_type_list", {1, 0}}}, {"`attn_type_list`", "1"}},
      {"minimax_m2_a", {{"layernorm_mlp_beta", 3.5}}, {"`layernorm_mlp_beta`"}},
      {"minimax_m2_a", {{"use_qk_norm", false}}, {"`use_qk_norm`", "true"}},
      {"ernie4_5_moe_a", {{"use_bias", true}}, {"`use_bias`"}},
      {"ernie4_5_moe_a", {{"moe_use_aux_free", false}}, {"`moe_use_aux_free`", "true"}},
      {"ernie4_5_moe_a", {{"moe_num_experts", {64, 64}}}, {"`moe_num_experts`"}},
      {"dots1_a", {{"scoring_func", "softmax"}}, {"`scoring_func`", "\"noaux_tc\" or \"sigmoid\""}},
      {"hunyuan_v1_moe_a", {{"moe_topk", {2, 3}}}, {"`moe_topk`", "all layers"}},
      {"hunyuan_v1_moe_a", {{"use_cla", true}}, {"`use_cla`", "false"}},
      {"hunyuan_v1_moe_a", {{"moe_intermediate_size", 17}}, {"`moe_intermediate_size`", "intermediate_size"}},
      {"hunyuan_v1_moe_a", {{"attention_head_dim", 64}}, {"`attention_head_dim`", "head_dim"}},
      {"hunyuan_v1_moe_a", {{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}}, {"`rope_scaling.type`"}},
      {"llama4_text_a", {{"attention_chunk_size", nullptr}}, {"`attention_chunk_size`"}},
      {"llama4_text_a", {{"no_rope_layers", {1, 0}}}, {"`no_rope_layers`", "3 layers"}},
      {"llama4_text_a",
       {{"layer_types", {"chunked_attention", "sliding_attention", "full_attention"}}},
       {"`layer_types`"}},
      {"deepseek_v3_a", {{"scoring_func", "softmax"}}, {"`scoring_func`", "\"sigmoid\""}},
      {"deepseek_v3_a", {{"topk_method", "greedy"}}, {"`topk_method`", "\"noaux_tc\""}},
      {"deepseek_v3_a", {{"head_dim", 64}}, {"`head_dim`", "qk_rope_head_dim"}},
      {"deepseek_v3_a", {{"index_topk", 2048}}, {"`index_topk`"}},
      {"qwen3_moe_a", {{"num_experts", 8192}, {"num_hidden_layers", 100}}, {"`num_hidden_layers`", "262144"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.checkpoint) + c.changes.dump());
    const test::Failure f = failure_of([&] { parse(golden(c.checkpoint, c.changes)); });
    EXPECT_EQ(f.code, Code::kBadData);
    for (const std::string& part : c.message) EXPECT_THAT(f.message, HasSubstr(part));
  }
}

// Families next to the supported ones are refused by their name.
TEST(Families, RefusedByName) {
  for (const char* name : {"qwen3_next", "qwen3_5_moe", "deepseek_v32", "mllama", "glm4v_moe", "minimax", "jamba",
                           "granitemoe", "phimoe", "kimi_k25", "mistral"})
    EXPECT_THAT(failure_of([&] {
                  parse(golden("qwen3_moe_a", {{"model_type", name}}));
                }).message,
                AllOf(HasSubstr(name), HasSubstr("gpt_oss"), HasSubstr("qwen3_moe")));
}

// What transformers 5.17's config classes have where config.json says nothing.
TEST(Families, MissingFieldsHaveTheDefaultsOfTheArchitecture) {
  Config c = parse(golden("glm4_moe_a", {{"partial_rotary_factor", "DROP"},
                                         {"rope_theta", "DROP"},
                                         {"use_qk_norm", "DROP"},
                                         {"attention_bias", "DROP"},
                                         {"n_group", "DROP"},
                                         {"routed_scaling_factor", "DROP"},
                                         {"rms_norm_eps", "DROP"}}));
  EXPECT_EQ(c.rope.dim, 24);
  EXPECT_FLOAT_EQ(c.rope.theta, 10000.0f);
  EXPECT_EQ(c.gqa.qk_norm, QkNorm::kNone);
  EXPECT_FALSE(c.gqa.qkv_bias);
  EXPECT_EQ(c.moe.num_groups, 1);
  EXPECT_FLOAT_EQ(c.moe.routed_scaling_factor, 1.0f);
  EXPECT_FLOAT_EQ(c.rms_norm_eps, 1e-5f);

  c = parse(golden("mixtral_a", {{"rope_theta", "DROP"}, {"num_key_value_heads", nullptr}}));
  EXPECT_FLOAT_EQ(c.rope.theta, 1e6f);
  EXPECT_EQ(c.gqa.num_kv_heads, 4);
  EXPECT_EQ(parse(golden("qwen3_moe_a", {{"num_key_value_heads", "DROP"}})).gqa.num_kv_heads, 4);
  EXPECT_TRUE(parse(golden("ernie4_5_moe_a", {{"tie_word_embeddings", "DROP"}})).tie_word_embeddings);
  EXPECT_TRUE(parse(golden("qwen2_moe_a", {{"qkv_bias", "DROP"}})).gqa.qkv_bias);
  EXPECT_FALSE(parse(golden("qwen3_moe_a", {{"norm_topk_prob", "DROP"}})).moe.normalize_topk);

  c = parse(golden("llama4_text_a", {{"rope_theta", "DROP"}, {"no_rope_layers", {0, 0, 0}}}));
  EXPECT_FLOAT_EQ(c.rope.theta, 500000.0f);
  EXPECT_EQ(c.layers[0].chunk, 0);  // attention_chunk_size is there all the same

  // gpt-oss without any word of RoPE has its YaRN.
  c = parse(golden("gpt_oss_a", {{"rope_scaling", "DROP"}, {"rope_theta", "DROP"}, {"layer_types", "DROP"}}));
  EXPECT_EQ(c.rope.scaling, RopeScaling::kYarn);
  EXPECT_FLOAT_EQ(c.rope.factor, 32.0f);
  EXPECT_EQ(c.rope.original_max_position, 4096);
  EXPECT_FALSE(c.rope.truncate);
  EXPECT_FLOAT_EQ(c.rope.theta, 150000.0f);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(c.layers[size_t(i)].window, i % 2 == 0 ? 16 : 0);

  // A default does not contradict another spelling.
  EXPECT_EQ(
      parse(golden("hunyuan_v1_moe_a", {{"moe_topk", "DROP"}, {"num_experts_per_tok", 2}})).moe.num_experts_per_tok, 2);
}

TEST(Families, Windows) {
  auto windows = [](const json& j) {
    std::vector<int> all;
    for (const LayerConfig& l : parse(j).layers) all.push_back(l.window);
    return all;
  };
  using Ints = std::vector<int>;
  EXPECT_EQ(windows(golden("mixtral_a", {{"sliding_window", 7}})), Ints({7, 7, 7}));
  EXPECT_EQ(windows(golden("qwen3_moe_a", {{"use_sliding_window", true}, {"sliding_window", 9}})), Ints({9, 9, 9}));
  EXPECT_EQ(windows(golden("qwen3_moe_a", {{"use_sliding_window", false}, {"sliding_window", 9}})), Ints({0, 0, 0}));
  EXPECT_EQ(windows(golden("qwen2_moe_a", {{"max_window_layers", 2}})), Ints({16, 0, 0}));
  EXPECT_EQ(windows(golden("qwen2_moe_a", {{"max_window_layers", 3}})), Ints({16, 0, 16}));
  EXPECT_EQ(
      windows(golden("qwen2_moe_a", {{"layer_types", {"full_attention", "sliding_attention", "full_attention"}}})),
      Ints({0, 16, 0}));
  EXPECT_EQ(windows(golden("dots1_a", {{"max_window_layers", 0}})), Ints({16, 16}));
  EXPECT_EQ(windows(golden("dots1_a", {{"max_window_layers", "DROP"}})), Ints({0, 0}));
  EXPECT_EQ(windows(golden("dots1_a", {{"sliding_window", nullptr}, {"max_window_layers", 0}})), Ints({0, 0}));
}

TEST(Families, Llama4Layers) {
  const Config c = parse(golden("llama4_text_a", {{"no_rope_layers", "DROP"},
                                                  {"no_rope_layer_interval", 2},
                                                  {"moe_layers", "DROP"},
                                                  {"interleave_moe_layer_step", 2}}));
  for (int i = 0; i < 3; ++i) {
    const LayerConfig& l = c.layers[size_t(i)];
    EXPECT_EQ(l.rope, i != 1);
    EXPECT_EQ(l.temperature, i == 1);
    EXPECT_EQ(l.chunk, i == 1 ? 0 : 32);
    EXPECT_EQ(l.feed_forward, i == 1 ? FeedForwardKind::kMoe : FeedForwardKind::kDense);
  }
  EXPECT_EQ(parse(golden("llama4_text_a", {{"attn_temperature_tuning", 4}})).layers[1].temperature, true);
}

// The published form: the text model inside a multimodal config, its tensors behind language_model.
TEST(Families, Llama4AsPublished) {
  json outer = {{"architectures", {"Llama4ForConditionalGeneration"}},
                {"model_type", "llama4"},
                {"torch_dtype", "bfloat16"},
                {"boi_token_index", 200080},
                {"image_token_index", 200092},
                {"transformers_version", "4.51.0"},
                {"vision_config", {{"hidden_size", 1408}, {"model_type", "llama4_vision_model"}}},
                {"text_config", golden("llama4_text_a", {{"architectures", "DROP"}})}};
  const Config c = parse(outer);
  EXPECT_EQ(c.model_type, "llama4");
  EXPECT_EQ(c.architecture, "Llama4ForConditionalGeneration");
  EXPECT_EQ(c.layers.size(), 3u);

  // The checkpoint of the text model, renamed.
  const auto source = test::source_dir() / "tests/golden/llama4_text_a";
  const std::string file = test::read_file(source / "model.safetensors");
  uint64_t n = 0;
  std::memcpy(&n, file.data(), sizeof n);
  json header = json::object();
  const json all = json::parse(file.substr(8, n));
  for (const auto& [name, tensor] : all.items())
    header[name == "__metadata__" ? name : "language_model." + name] = tensor;
  TempDir dir;
  dir.write("config.json", outer.dump());
  dir.write("model.safetensors", test::safetensors(header.dump(), file.substr(8 + n)));
  const InspectReport r = inspect_checkpoint(dir.path()), alone = inspect_checkpoint(source);
  EXPECT_TRUE(r.usable()) << to_text(r);
  EXPECT_EQ(r.unexpected.count, 0);
  EXPECT_EQ(r.parameters.total, alone.parameters.total);

  outer["text_config"]["surprise"] = 1;
  EXPECT_THAT(failure_of([&] { parse(outer); }).message, HasSubstr("`text_config.surprise`"));
  outer["text_config"].erase("surprise");
  outer["surprise"] = 1;
  EXPECT_THAT(failure_of([&] { parse(outer); }).message, HasSubstr("`surprise`"));
  outer.erase("text_config");
  EXPECT_THAT(failure_of([&] { parse(outer); }).message, HasSubstr("`text_config`"));
}

TEST(Families, RopeSpellings) {
  // One of them only inside, both equal, and outside for models that were extended.
  const json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}};
  Config c = parse(golden("qwen3_moe_a", {{"rope_scaling", yarn}, {"original_max_position_embeddings", 512}}));
  EXPECT_EQ(c.rope.original_max_position, 512);
  c = parse(golden("qwen3_moe_a", {{"rope_scaling", yarn}}));
  EXPECT_EQ(c.rope.original_max_position, 2048);
  c = parse(golden(
      "qwen3_moe_a",
      {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", nullptr}, {"original_max_position_embeddings", 256}}}}));
  EXPECT_FLOAT_EQ(c.rope.factor, 8.0f);
  EXPECT_THAT(failure_of([&] {
                parse(golden("qwen3_moe_a", {{"rope_scaling", yarn}, {"rope_parameters", {{"rope_type", "default"}}}}));
              }).message,
              HasSubstr("the same as"));
  // Hunyuan's alpha is another theta.
  c = parse(golden("hunyuan_v1_moe_a"));
  EXPECT_EQ(c.rope.scaling, RopeScaling::kNone);
  EXPECT_FLOAT_EQ(c.rope.theta, float(10000.0 * std::pow(1000.0, 16.0 / 14.0)));
}

TEST(Families, InspectShowsWhatIsSpecial) {
  auto text = [](const char* name) { return to_text(inspect_checkpoint(test::source_dir() / "tests/golden" / name)); };
  EXPECT_THAT(text("gpt_oss_a"), AllOf(HasSubstr("GQA, 4 heads on 2 of 32"), HasSubstr("sinks"),
                                       HasSubstr("window of 16 tokens in 2 of 4 layers"), HasSubstr("YaRN 32x")));
  EXPECT_THAT(text("glm4_moe_a"), AllOf(HasSubstr("biases on q, k, v;"), HasSubstr("normed by head"),
                                        HasSubstr("24 of each head in halves")));
  EXPECT_THAT(text("llama4_text_a"),
              AllOf(HasSubstr("chunks of 32 tokens in 2 of 3"), HasSubstr("no RoPE in 1 of 3 layers"),
                    HasSubstr("Llama 3 scaling 8x"), HasSubstr("applied to the experts' input")));
  EXPECT_THAT(text("qwen2_moe_a"), HasSubstr("1 shared with a gate"));
  const json j = to_json(inspect_checkpoint(test::source_dir() / "tests/golden/minimax_m2_a"));
  EXPECT_EQ(j["config"]["attention"], "gqa");
  EXPECT_EQ(j["config"]["qk_norm"], "all_before_rope");
  EXPECT_EQ(j["config"]["num_key_value_heads"], 2);
  EXPECT_EQ(j["config"]["rope"]["rotary_dim"], 8);
  EXPECT_EQ(j["usable"], true);
}

}  // namespace
}  // namespace moectl
