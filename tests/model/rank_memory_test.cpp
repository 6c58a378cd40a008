#include "core/model/rank_memory.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/model/implied_tensors.h"
#include "core/model/inspect.h"
#include "core/model/shapes.h"
#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr int64_t kH200 = 141'000'000'000;

Config published(const std::string& name) {
  static const json all = json::parse(test::read_file(test::source_dir() / "tests/model/published_configs.json"));
  return parse_config(all.at(name).at("config"), name);
}

RankMemory memory(const Config& config, const RankMemoryQuery& query) {
  return rank_memory(config, implied_checkpoint(config, "implied"), query);
}
RankMemory memory(const Config& config, const Parallelism& p) {
  return memory(config, {.parallelism = p});
}

std::string failure(const Config& config, const RankMemoryQuery& query) {
  try {
    memory(config, query);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadConfig);
    return e.what();
  }
  ADD_FAILURE() << "expected an error";
  return {};
}

// Two bytes per parameter: all that is not a routed expert, and an equal part of those.
TEST(RankMemory, EveryRankHoldsItsExpertsAndEverythingElse) {
  for (const char* name : {"Qwen3-30B-A3B", "GLM-4.5-Air", "DeepSeek-V2-Lite"}) {
    const Config config = published(name);
    int64_t routed = 0, rest = 0;
    for (const auto& layer : inspect_config(config).layers) {
      const int64_t experts =
          layer.moe ? int64_t{3} * config.hidden_size * config.moe.moe_intermediate_size * config.moe.num_experts : 0;
      routed += experts;
      rest += layer.parameters - experts;
    }
    rest += config.hidden_size + 2 * int64_t{config.vocab_size} * config.hidden_size * (1 + config.num_mtp_layers);
    for (const int ep : {1, 2, 4, 8}) {
      SCOPED_TRACE(fmt::format("{} EP {}", name, ep));
      const RankMemory rank = memory(config, expert_parallel(ep));
      EXPECT_EQ(rank.num_local_experts, config.moe.num_experts / ep);
      EXPECT_EQ(rank.num_redundant_experts, 0);
      EXPECT_NEAR(double(rank.weight_bytes), 2.0 * double(rest + routed / ep), 64.0);
    }
  }
}

// The design's figures for one host of eight H200 (parallelism.md): 168 GB at TP 4, 182 GB at EP 4,
// within a hundredth.
TEST(RankMemory, DeepSeekR1) {
  const Config r1 = shape_config("deepseek-r1");
  EXPECT_NEAR(double(memory(r1, {.tp_size = 4, .ep_size = 4}).weight_bytes), 168e9, 1.7e9);
  EXPECT_NEAR(double(memory(r1, expert_parallel(4)).weight_bytes), 182e9, 1.8e9);
  const RankMemory of_72 = memory(r1, expert_parallel(72));
  EXPECT_EQ(of_72.num_local_experts, 4);
  EXPECT_EQ(of_72.num_redundant_experts, 32);
  const RankMemory rank = memory(r1, {.parallelism = expert_parallel(8), .gpu_memory_bytes = kH200});
  EXPECT_TRUE(rank.gpu->fits);
  EXPECT_EQ(rank.gpu->max_model_len, 163840);
  EXPECT_EQ(rank.gpu->smallest_ep_size, 8);
  EXPECT_FALSE(memory(r1, {.parallelism = expert_parallel(4), .gpu_memory_bytes = kH200}).gpu->fits);
}

TEST(RankMemory, KvCacheOfARank) {
  const Config qwen = published("Qwen3-30B-A3B"), v3 = published("DeepSeek-V3");
  const auto kv = [](const Config& config, int tp) {
    return memory(config, {.tp_size = tp, .ep_size = tp}).kv_bytes_per_token_bf16;
  };
  EXPECT_EQ(kv(qwen, 1), 48 * 2 * 4 * 128 * 2);
  EXPECT_EQ(kv(qwen, 4), kv(qwen, 1) / 4);
  EXPECT_EQ(kv(qwen, 8), kv(qwen, 1) / 4) << "4 KV heads: two ranks hold the same one";
  EXPECT_EQ(kv(v3, 1), (61 + 1) * (512 + 64) * 2);
  EXPECT_EQ(kv(v3, 8), kv(v3, 1)) << "every rank holds MLA's compressed KV";
  EXPECT_EQ(memory(v3, expert_parallel(8)).kv_bytes_per_token_f32, 2 * kv(v3, 1));
}

TEST(RankMemory, TheSmallestEpSizeFitsAndTheOneBelowDoesNot) {
  int num_above_one = 0;
  for (const char* name : {"DeepSeek-V3", "Kimi-K2", "Qwen3-235B-A22B", "gpt-oss-120b", "Qwen3-30B-A3B"}) {
    const Config config = published(name);
    const Checkpoint implied = implied_checkpoint(config, name);
    for (const int tp : {1, 2}) {
      for (const int64_t gigabytes : {80, 288}) {
        SCOPED_TRACE(fmt::format("{} TP {}, {} GB", name, tp, gigabytes));
        const auto at = [&](int ep) {
          return *rank_memory(config, implied,
                              {.parallelism = {.tp_size = tp, .dp_size = ep / tp, .ep_size = ep},
                               .gpu_memory_bytes = gigabytes * 1'000'000'000})
                      .gpu;
        };
        const std::optional<int> ep = at(tp).smallest_ep_size;
        ASSERT_TRUE(ep);
        EXPECT_TRUE(at(*ep).fits);
        EXPECT_GE(at(*ep).kv_tokens, at(*ep).max_model_len);
        if (*ep == tp) continue;
        EXPECT_FALSE(at(*ep - tp).fits);
        ++num_above_one;
      }
    }
  }
  EXPECT_GE(num_above_one, 7);
}

TEST(RankMemory, WhatNoEpSizeFits) {
  const Config r1 = shape_config("deepseek-r1");
  EXPECT_EQ(memory(r1, {.gpu_memory_bytes = 24'000'000'000}).gpu->smallest_ep_size, std::nullopt);
  // Experts that TP ranks split are not placed by EP.
  const RankMemory split = memory(r1, {.parallelism = {.tp_size = 8, .ep_size = 1}, .gpu_memory_bytes = kH200});
  EXPECT_EQ(split.num_local_experts, 256);
  EXPECT_EQ(split.gpu->smallest_ep_size, std::nullopt);
  EXPECT_TRUE(split.gpu->fits);
}

TEST(RankMemory, ShorterSequencesAndALargerShareFitMore) {
  const Config qwen = published("Qwen3-235B-A22B");
  RankMemoryQuery query = {.parallelism = expert_parallel(8), .gpu_memory_bytes = kH200};
  const RankMemory::Gpu gpu = *memory(qwen, query).gpu;
  EXPECT_EQ(gpu.usable_bytes, kH200 / 10 * 9);
  query.gpu_memory_utilization = 0.95;
  EXPECT_GT(memory(qwen, query).gpu->kv_tokens, gpu.kv_tokens);
  query.max_model_len = 4096;
  EXPECT_EQ(memory(qwen, query).gpu->max_model_len, 4096);
}

TEST(RankMemory, SizesThatCannotSplitTheModel) {
  const Config r1 = shape_config("deepseek-r1");
  EXPECT_THAT(failure(r1, {.parallelism = {.tp_size = 3, .ep_size = 3}}), HasSubstr("--tensor-parallel-size 3"));
  EXPECT_THAT(failure(r1, {.parallelism = {.tp_size = 32, .ep_size = 1}}), HasSubstr("inside a scale block of 128"));
  EXPECT_THAT(failure(r1, {.parallelism = expert_parallel(3), .num_redundant_experts = 0}),
              HasSubstr("--num-redundant-experts 0"));
  EXPECT_THAT(failure(r1, {.max_model_len = 200'000}), HasSubstr("--max-model-len 200000"));
}

TEST(RankMemory, ReportsOfAFolder) {
  const std::filesystem::path demo = test::source_dir() / "models/demo";
  const RankMemoryQuery query = {.parallelism = expert_parallel(3), .gpu_memory_bytes = kH200};
  const json j = to_json(inspect_checkpoint(demo, query)).at("rank");
  EXPECT_EQ(j.at("num_ranks"), 3);
  EXPECT_EQ(j.at("num_local_experts"), 11);
  EXPECT_EQ(j.at("num_redundant_experts"), 1);
  EXPECT_EQ(j.at("kv_bytes_per_token").at("bf16"), 7 * 160 * 2);
  EXPECT_EQ(j.at("gpu").at("smallest_ep_size"), 1);
  EXPECT_EQ(j.at("gpu").at("fits"), true);
  const std::string text = to_text(inspect_checkpoint(demo, query));
  EXPECT_THAT(text, HasSubstr("3: EP 3, DP 3, TP 1"));
  EXPECT_THAT(text, HasSubstr("11 of 32 in each MoE layer, 1 redundant"));
  EXPECT_FALSE(to_json(inspect_checkpoint(demo)).contains("rank"));

  // config.json alone gives the bytes of the checkpoint, but for scales and biases in other dtypes.
  test::TempDir config_only;
  config_only.write("config.json", test::read_file(demo / "config.json"));
  const json alone = to_json(inspect_checkpoint(config_only.path(), query)).at("rank");
  EXPECT_NEAR(alone.at("weight_bytes").get<double>(), j.at("weight_bytes").get<double>(), 1000);
  EXPECT_EQ(to_json(inspect_config(shape_config("tiny"), "tiny", query)).at("path"), "tiny");
}

}  // namespace
}  // namespace moectl
