// The built-in shapes give what the published config.json of the model gives.
#include "core/model/shapes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"

namespace moectl {
namespace {

using ::testing::HasSubstr;

std::string failure(std::string_view text) {
  try {
    shape_config(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kUsage);
    return error.what();
  }
  ADD_FAILURE() << text << ": expected an error";
  return {};
}

TEST(Shapes, AreThePublishedModels) {
  std::ifstream in(MOECTL_SOURCE_DIR "/tests/model/published_configs.json");
  const nlohmann::json published = nlohmann::json::parse(in);
  const std::vector<std::pair<std::string, std::string>> pairs = {
      {"deepseek-r1", "DeepSeek-V3"}, {"ds-v2-lite", "DeepSeek-V2-Lite"}, {"qwen3-30b-a3b", "Qwen3-30B-A3B"}};
  for (const auto& [shape, model] : pairs) {
    SCOPED_TRACE(shape);
    const Config a = shape_config(shape), b = parse_config(published.at(model).at("config"), model);
    EXPECT_EQ(a.model_type, b.model_type);
    EXPECT_EQ(a.vocab_size, b.vocab_size);
    EXPECT_EQ(a.hidden_size, b.hidden_size);
    EXPECT_EQ(a.intermediate_size, b.intermediate_size);
    EXPECT_EQ(a.num_layers, b.num_layers);
    EXPECT_EQ(a.num_heads, b.num_heads);
    EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
    EXPECT_EQ(a.num_mtp_layers, 0);
    EXPECT_EQ(a.mla.q_lora_rank, b.mla.q_lora_rank);
    EXPECT_EQ(a.mla.qk_nope_head_dim, b.mla.qk_nope_head_dim);
    EXPECT_EQ(a.mla.v_head_dim, b.mla.v_head_dim);
    EXPECT_EQ(a.kv_values_per_token(), b.kv_values_per_token());
    EXPECT_EQ(a.rope.theta, b.rope.theta);
    EXPECT_EQ(a.rope.factor, b.rope.factor);
    EXPECT_EQ(a.softmax_scale, b.softmax_scale);
    EXPECT_EQ(a.moe.num_experts, b.moe.num_experts);
    EXPECT_EQ(a.moe.num_experts_per_tok, b.moe.num_experts_per_tok);
    EXPECT_EQ(a.moe.moe_intermediate_size, b.moe.moe_intermediate_size);
    EXPECT_EQ(a.moe.shared_intermediate_size, b.moe.shared_intermediate_size);
    EXPECT_EQ(a.moe.scoring, b.moe.scoring);
    EXPECT_EQ(a.moe.select, b.moe.select);
    EXPECT_EQ(a.moe.num_groups, b.moe.num_groups);
    EXPECT_EQ(a.moe.num_topk_groups, b.moe.num_topk_groups);
    EXPECT_EQ(a.moe.normalize_topk, b.moe.normalize_topk);
    EXPECT_EQ(a.moe.routed_scaling_factor, b.moe.routed_scaling_factor);
    EXPECT_EQ(a.quant, b.quant);
    for (int i = 0; i < a.num_layers; ++i)
      EXPECT_EQ(a.layers[size_t(i)].feed_forward, b.layers[size_t(i)].feed_forward) << "layer " << i;
  }
}

TEST(Shapes, FirstLayers) {
  const Config c = shape_config("deepseek-r1:layers=5");
  EXPECT_EQ(c.num_layers, 5);
  EXPECT_EQ(c.layers.size(), 5u);
  EXPECT_EQ(c.layers[2].feed_forward, FeedForwardKind::kDense);
  EXPECT_EQ(c.layers[3].feed_forward, FeedForwardKind::kMoe);
  EXPECT_EQ(shape_config("deepseek-r1:layers=1").num_layers, 1);
}

TEST(Shapes, EveryOneCanBeRead) {
  for (const std::string_view name : shape_names()) EXPECT_GT(shape_config(name).num_layers, 0) << name;
}

TEST(Shapes, UnknownNames) {
  EXPECT_THAT(failure("deepseek"), HasSubstr("there are deepseek-r1, ds-v2-lite, qwen3-30b-a3b, tiny"));
  EXPECT_THAT(failure("deepseek-r1:"), HasSubstr("layers=N, N from 1 to 61"));
  EXPECT_THAT(failure("deepseek-r1:layers=0"), HasSubstr("N from 1 to 61"));
  EXPECT_THAT(failure("deepseek-r1:layers=62"), HasSubstr("N from 1 to 61"));
  EXPECT_THAT(failure("deepseek-r1:layers=5x"), HasSubstr("N from 1 to 61"));
  EXPECT_THAT(failure("deepseek-r1:experts=5"), HasSubstr("layers=N"));
}

}  // namespace
}  // namespace moectl
