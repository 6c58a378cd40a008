// The experts' load in the report of `bench engine`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cmd/bench/expert_load.h"

namespace moectl {
namespace {

using Json = nlohmann::json;

const ExpertLoad kLoad = {{{1, {2, 4, 6, 0}, {6, 6}}, {2, {3, 3, 3, 3}, {9, 3}}, {61, {0, 0, 0, 0}, {0, 0}}}};

TEST(BenchExpertLoad, Json) {
  const Json json = expert_load_json(kLoad);
  EXPECT_EQ(json["expert_balancedness"], (Json{{"mean", 0.75}, {"lowest", 0.5}, {"lowest_layer", 1}}));
  EXPECT_EQ(json["rank_balancedness"]["lowest_layer"], 2);
  ASSERT_EQ(json["layers"].size(), 3u);
  EXPECT_EQ(json["layers"][0], (Json{{"layer", 1},
                                     {"num_tokens", 12},
                                     {"expert_balancedness", 0.5},
                                     {"rank_balancedness", 1.0},
                                     {"tokens_per_expert", {2, 4, 6, 0}},
                                     {"tokens_per_rank", {6, 6}}}));
  EXPECT_EQ(json["layers"][2]["expert_balancedness"], nullptr);
  EXPECT_EQ(expert_load_json({}), nullptr) << "a model without experts";
}

TEST(BenchExpertLoad, Text) {
  EXPECT_EQ(expert_load_text(kLoad),
            "tokens per expert            0.75 mean / max over the MoE layers, 0.50 in layer 1\n"
            "tokens per rank              0.83 mean / max over the MoE layers, 0.67 in layer 2\n");
  EXPECT_EQ(expert_load_text({{{0, {2, 4}, {6}}}}),
            "tokens per expert            0.75 mean / max over the MoE layers, 0.75 in layer 0\n");
  EXPECT_EQ(expert_load_text({{{0, {0, 0}, {0}}}}), "");
  EXPECT_EQ(expert_load_text({}), "");
}

}  // namespace
}  // namespace moectl
