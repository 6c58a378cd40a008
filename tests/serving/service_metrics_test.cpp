// What /metrics says of the experts' load, and that it stays small.
#include "core/serving/service_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moectl::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string text_of(ServiceMetrics& metrics) {
  return metrics.text({.role = "decode", .phase = "ready"});
}

TEST(ServiceMetrics, ExpertLoadPerLayer) {
  ServiceMetrics metrics;
  EXPECT_THAT(text_of(metrics), Not(HasSubstr("moectl_expert")));
  EXPECT_FALSE(metrics.expert_balance());
  metrics.set_expert_load({{{1, {2, 4, 6, 0}, {6, 6}}, {3, {3, 3, 3, 3}, {9, 3}}, {61, {0, 0, 0, 0}, {0, 0}}}});
  const std::string text = text_of(metrics);
  EXPECT_THAT(text, HasSubstr("# TYPE moectl_expert_load gauge"));
  EXPECT_THAT(text, HasSubstr("moectl_expert_load{layer=\"1\"} 0.5\n"));
  EXPECT_THAT(text, HasSubstr("moectl_expert_load{layer=\"3\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("moectl_expert_rank_load{layer=\"1\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("moectl_expert_rank_load{layer=\"3\"} 0.6666666666666666\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE moectl_expert_tokens_total counter"));
  EXPECT_THAT(text, HasSubstr("moectl_expert_tokens_total{layer=\"3\"} 12\n"));
  EXPECT_THAT(text, Not(HasSubstr("layer=\"61\""))) << "no step has run it";
  ASSERT_TRUE(metrics.expert_balance());
  EXPECT_EQ(metrics.expert_balance()->mean, 0.75);
  EXPECT_EQ(metrics.expert_balance()->lowest_layer, 1);

  metrics.set_expert_load({{{1, {8, 8, 8, 8}, {16, 16}}, {3, {3, 3, 3, 7}, {9, 7}}, {61, {0, 0, 0, 0}, {0, 0}}}});
  EXPECT_THAT(text_of(metrics), HasSubstr("moectl_expert_load{layer=\"1\"} 1\n"));
  EXPECT_THAT(text_of(metrics), HasSubstr("moectl_expert_tokens_total{layer=\"1\"} 32\n"));
}

TEST(ServiceMetrics, OneRankHasNoBalanceOverRanks) {
  ServiceMetrics metrics;
  metrics.set_expert_load({{{0, {2, 4}, {6}}}});
  EXPECT_THAT(text_of(metrics), HasSubstr("moectl_expert_load{layer=\"0\"} 0.75\n"));
  EXPECT_THAT(text_of(metrics), Not(HasSubstr("moectl_expert_rank_load")));
}

}  // namespace
}  // namespace moectl::test
