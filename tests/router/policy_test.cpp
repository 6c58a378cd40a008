#include "router/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/base/error.h"
#include "router/prefix_index.h"

namespace moectl::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<BlockHash> prompt(size_t num_blocks, char fill = 'a', std::string_view salt = "m") {
  return prompt_blocks(salt, std::string(num_blocks * kPromptBlockBytes, fill));
}
std::vector<PolicyWorker> idle(size_t count) {
  std::vector<PolicyWorker> workers;
  for (size_t i = 0; i < count; ++i) workers.push_back({int(i) + 1, 0, 0});
  return workers;
}
std::vector<size_t> choices(Policy& policy, const std::vector<PolicyWorker>& workers, size_t count) {
  std::vector<size_t> result;
  for (size_t i = 0; i < count; ++i) result.push_back(policy.choose(workers, {}).index);
  return result;
}

TEST(PromptBlocks, ChainAndSalt) {
  const std::string text(3 * kPromptBlockBytes + 17, 'x');
  const auto blocks = prompt_blocks("m", text);
  ASSERT_EQ(blocks.size(), 3u);
  EXPECT_FALSE(blocks[0] == blocks[1]);  // equal bytes, another beginning
  std::string other = text;
  other[0] = 'y';
  const auto changed = prompt_blocks("m", other);
  for (size_t i = 0; i < 3; ++i) EXPECT_FALSE(blocks[i] == changed[i]) << i;
  other = text;
  other[kPromptBlockBytes] = 'y';
  EXPECT_EQ(prompt_blocks("m", other)[0], blocks[0]);
  EXPECT_FALSE(prompt_blocks("other", text)[0] == blocks[0]);
  EXPECT_TRUE(prompt_blocks("m", "short").empty());
  EXPECT_EQ(prompt_blocks("m", std::string(10 << 20, 'x')).size(), kMaxPromptBlocks);
}

TEST(PrefixIndex, MatchesFromTheBeginningOnly) {
  PrefixIndex index(100);
  index.insert(prompt(4), 1);
  EXPECT_EQ(index.match(prompt(4), 1), 4);
  EXPECT_EQ(index.match(prompt(9), 1), 4);
  EXPECT_EQ(index.match(prompt(2), 1), 2);
  EXPECT_EQ(index.match(prompt(4), 2), 0);
  EXPECT_EQ(index.match(prompt(4, 'b'), 1), 0);
  index.insert(prompt(2), 2);
  EXPECT_EQ(index.match(prompt(4), 2), 2);
  index.remove_worker(1);
  EXPECT_EQ(index.match(prompt(4), 1), 0);
  EXPECT_EQ(index.match(prompt(4), 2), 2);
  EXPECT_EQ(index.num_blocks(), 2u);
}

TEST(PrefixIndex, IsBoundedAndForgetsTheEndsOfOldPromptsFirst) {
  PrefixIndex index(10);
  index.insert(prompt(8), 1);
  index.insert(prompt(6, 'b'), 1);
  EXPECT_EQ(index.num_blocks(), 10u);
  EXPECT_EQ(index.match(prompt(6, 'b'), 1), 6);
  EXPECT_EQ(index.match(prompt(8), 1), 4);
  index.insert(prompt(500, 'c'), 1);
  EXPECT_EQ(index.num_blocks(), 10u);
  EXPECT_EQ(index.match(prompt(500, 'c'), 1), 10);
}

TEST(Policies, AreFoundByNameAliasAndUnderscore) {
  for (const std::string_view name : policy_names()) EXPECT_NE(make_policy(name, {}), nullptr) << name;
  for (const char* name : {"cache_aware", "power_of_two", "round_robin", "cache-aware", "least_token"})
    EXPECT_NE(make_policy(name, {}), nullptr) << name;
  try {
    make_policy("best", {});
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("prefix-cache, least-token"));
  }
}

TEST(Policies, EveryOneServesOneWorkerAndStaysInRange) {
  for (const std::string_view name : policy_names()) {
    const auto policy = make_policy(name, {});
    EXPECT_EQ(policy->choose(idle(1), prompt(3)).index, 0u) << name;
    for (int i = 0; i < 1000; ++i) EXPECT_LT(policy->choose(idle(7), prompt(3)).index, 7u) << name;
  }
}

TEST(Policies, RoundRobin) {
  const auto policy = make_policy("round-robin", {});
  EXPECT_THAT(choices(*policy, idle(3), 5), ElementsAre(0, 1, 2, 0, 1));
}

TEST(Policies, LeastTokenAndLeastRequestLookAtDifferentLoads) {
  const std::vector<PolicyWorker> workers = {{1, 1, 900}, {2, 5, 100}, {3, 2, 500}};
  EXPECT_EQ(make_policy("least-token", {})->choose(workers, {}).index, 1u);
  EXPECT_EQ(make_policy("least-request", {})->choose(workers, {}).index, 0u);
  const auto policy = make_policy("least-token", {});
  EXPECT_THAT(choices(*policy, idle(3), 4), ElementsAre(0, 1, 2, 0));  // equals take turns
}

TEST(Policies, PowerOfTwoNeverTakesTheWorst) {
  const auto policy = make_policy("power-of-two", {});
  const std::vector<PolicyWorker> workers = {{1, 9, 0}, {2, 1, 0}, {3, 2, 0}};
  std::map<size_t, int> counts;
  for (const size_t choice : choices(*policy, workers, 600)) ++counts[choice];
  EXPECT_EQ(counts[0], 0);
  EXPECT_GT(counts[1], counts[2]);
  EXPECT_GT(counts[2], 0);
}

TEST(Policies, RandomReachesEverybody) {
  PolicyOptions options;
  options.seed = 7;
  const auto policy = make_policy("random", options);
  std::map<size_t, int> counts;
  for (const size_t choice : choices(*policy, idle(4), 4000)) ++counts[choice];
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(counts[i], 1000, 150);
  EXPECT_EQ(choices(*make_policy("random", options), idle(4), 50),
            choices(*make_policy("random", options), idle(4), 50));
}

TEST(PrefixCachePolicy, GoesWhereThePrefixIs) {
  const auto policy = make_policy("prefix-cache", {});
  EXPECT_THAT(policy->choose(idle(3), prompt(4)).why, HasSubstr("no prefix known"));
  policy->on_routed(3, prompt(4));
  policy->on_routed(2, prompt(2));
  const PolicyChoice choice = policy->choose(idle(3), prompt(6));
  EXPECT_EQ(choice.index, 2u);
  EXPECT_EQ(choice.cached_blocks, 4);
  EXPECT_EQ(choice.why, "longest prefix: 4 of 6 blocks");
  EXPECT_EQ(policy->cached_blocks(2, prompt(6)), 2);
  EXPECT_GT(policy->state_bytes(), 0u);
}

TEST(PrefixCachePolicy, PassesOverAHitWithTooMuchLoad) {
  const auto policy = make_policy("prefix-cache", {});
  policy->on_routed(1, prompt(4));
  // Mean 100: 130 is tolerated, 131 (of mean 100.33) is not.
  EXPECT_EQ(policy->choose(std::vector<PolicyWorker>{{1, 1, 130}, {2, 1, 70}, {3, 1, 100}}, prompt(4)).index, 0u);
  const PolicyChoice choice = policy->choose(std::vector<PolicyWorker>{{1, 1, 131}, {2, 1, 70}, {3, 1, 99}}, prompt(4));
  EXPECT_EQ(choice.index, 1u);
  EXPECT_EQ(choice.cached_blocks, 0);
  EXPECT_THAT(choice.why, HasSubstr("passed over"));
}

TEST(PrefixCachePolicy, EqualHitsGoToTheLesserLoad) {
  const auto policy = make_policy("prefix-cache", {});
  policy->on_routed(1, prompt(4));
  policy->on_routed(2, prompt(4));
  EXPECT_EQ(policy->choose(std::vector<PolicyWorker>{{1, 1, 110}, {2, 1, 100}}, prompt(4)).index, 1u);
}

TEST(PrefixCachePolicy, ForgetsAWorkerThatIsRemoved) {
  const auto policy = make_policy("prefix-cache", {});
  policy->on_routed(2, prompt(4));
  policy->on_worker_removed(2);
  EXPECT_EQ(policy->cached_blocks(2, prompt(4)), 0);
}

}  // namespace
}  // namespace moectl::router
