// Routing: indices are compared exactly, weights with a tolerance.
#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(MoeGateTest);

struct Gate {
  int64_t num_experts = 8, top_k = 2;
  bool sigmoid = false, normalize = false, group_score_top2 = false;
  int num_groups = 1, num_topk_groups = 1;
  float scale = 1.0f;
  float norm_min = 0.0f;
};

struct Routing {
  std::vector<int32_t> idx;
  std::vector<float> weight;
};

Routing route(Ops& ops, const Gate& g, const std::vector<float>& logits, const std::vector<float>& bias,
              const ExpertCounting& count = {}) {
  const int64_t tokens = int64_t(logits.size()) / g.num_experts;
  Routing r = {std::vector<int32_t>(size_t(tokens * g.top_k), -1), std::vector<float>(size_t(tokens * g.top_k), NAN)};
  MoeGateArgs a;
  a.logits = View<const float>(logits.data(), {tokens, g.num_experts});
  if (!bias.empty()) a.bias = View<const float>(bias.data(), {g.num_experts});
  a.expert_idx = View<int32_t>(r.idx.data(), {tokens, g.top_k});
  a.expert_weight = View<float>(r.weight.data(), {tokens, g.top_k});
  a.sigmoid = g.sigmoid;
  a.normalize = g.normalize;
  a.num_groups = g.num_groups;
  a.num_topk_groups = g.num_topk_groups;
  a.group_score_top2 = g.group_score_top2;
  a.scale = g.scale;
  a.norm_min = g.norm_min;
  a.count = count;
  ops.moe_gate(a, {});
  return r;
}

// Indices of the `count` largest, best first, ties to the lower index; notes whether a distance is too small to be
// decided in f32.
std::vector<int> largest(const std::vector<double>& v, std::vector<int> among, int64_t count, bool* undecided) {
  std::stable_sort(among.begin(), among.end(), [&](int a, int b) { return v[size_t(a)] > v[size_t(b)]; });
  for (size_t i = 0; i + 1 < among.size() && i < size_t(count); ++i) {
    const double gap = v[size_t(among[i])] - v[size_t(among[i + 1])];
    if (gap > 0 && gap < 1e-6) *undecided = true;
  }
  among.resize(size_t(count));
  return among;
}

struct Reference {
  std::vector<int32_t> idx;
  std::vector<Bounded> weight;
  bool undecided = false;
};

Reference reference(const Gate& g, const float* logits, const std::vector<float>& bias) {
  const int64_t n = g.num_experts;
  std::vector<double> score, choice;
  double sum = 0;
  for (int64_t e = 0; e < n; ++e)
    score.push_back(g.sigmoid ? 1 / (1 + std::exp(-double(logits[e]))) : std::exp(double(logits[e])));
  for (double s : score) sum += s;
  if (!g.sigmoid)
    for (double& s : score) s /= sum;
  for (int64_t e = 0; e < n; ++e) choice.push_back(score[size_t(e)] + (bias.empty() ? 0.0 : double(bias[size_t(e)])));

  Reference r;
  const int64_t size = n / g.num_groups;
  std::vector<double> group_score;
  std::vector<int> groups(static_cast<size_t>(g.num_groups)), candidates;
  std::iota(groups.begin(), groups.end(), 0);
  for (int group : groups) {
    std::vector<double> of(choice.begin() + group * size, choice.begin() + (group + 1) * size);
    std::sort(of.rbegin(), of.rend());
    group_score.push_back(g.group_score_top2 && size > 1 ? of[0] + of[1] : of[0]);
  }
  std::vector<int> kept = largest(group_score, groups, g.num_topk_groups, &r.undecided);
  std::sort(kept.begin(), kept.end());
  for (int group : kept)
    for (int64_t e = 0; e < size; ++e) candidates.push_back(int(group * size + e));
  double chosen = 0;
  for (int e : largest(choice, candidates, g.top_k, &r.undecided)) {
    r.idx.push_back(e);
    chosen += score[size_t(e)];
  }
  // Softmax: two exponentials, a sum of n and a division; the library's expf is good to 2 u and its argument to |x| u.
  double reach = 0;
  for (int64_t e = 0; e < n; ++e) reach = std::max(reach, std::abs(double(logits[e])));
  const double relative = (12.0 + 4 * reach + double(n)) * unit_roundoff(DType::kF32);
  for (int32_t e : r.idx) {
    const double weight = (g.normalize ? score[size_t(e)] / chosen : score[size_t(e)]) * double(g.scale);
    r.weight.push_back({weight, 2 * relative * weight});
  }
  return r;
}

std::vector<Gate> gates() {
  std::vector<Gate> all;
  for (bool sigmoid : {false, true})
    for (bool top2 : {false, true})
      for (bool normalize : {false, true}) {
        all.push_back({8, 2, sigmoid, normalize, top2, 1, 1, 1.0f});
        all.push_back({7, 7, sigmoid, normalize, top2, 1, 1, 2.5f});  // every expert
        all.push_back({64, 6, sigmoid, normalize, top2, 8, 3, 16.0f});
        all.push_back({256, 8, sigmoid, normalize, top2, 8, 4, 2.5f});
        all.push_back({12, 3, sigmoid, normalize, top2, 12, 3, 1.0f});  // groups of one expert
        all.push_back({16, 8, sigmoid, normalize, top2, 4, 2, 1.0f});   // all experts of the groups that are kept
      }
  return all;
}

TEST_P(MoeGateTest, AgainstReference) {
  for (const Gate& g : gates())
    for (bool with_bias : {false, true}) {
      SCOPED_TRACE(fmt::format("{} experts, top {}, sigmoid {}, normalize {}, groups {} of {}, top-2 {}, bias {}",
                               g.num_experts, g.top_k, g.sigmoid, g.normalize, g.num_topk_groups, g.num_groups,
                               g.group_score_top2, with_bias));
      Random random(11);
      const std::vector<float> bias = with_bias ? random.floats(g.num_experts, 0.5f) : std::vector<float>();
      std::vector<float> logits;
      std::vector<Reference> expected;
      while (expected.size() < 40) {
        const std::vector<float> row = random.floats(g.num_experts, 4.0f);
        Reference r = reference(g, row.data(), bias);
        if (r.undecided) continue;
        logits.insert(logits.end(), row.begin(), row.end());
        expected.push_back(std::move(r));
      }
      const Routing all = route(ops(), g, logits, bias);
      std::vector<Bounded> weights;
      for (size_t t = 0; t < expected.size(); ++t) {
        const std::vector<int32_t> idx(all.idx.begin() + int64_t(t) * g.top_k,
                                       all.idx.begin() + int64_t(t + 1) * g.top_k);
        ASSERT_EQ(idx, expected[t].idx) << "token " << t;
        weights.insert(weights.end(), expected[t].weight.begin(), expected[t].weight.end());
        const Routing alone = route(ops(), g, row_of(logits, int64_t(t), g.num_experts), bias);
        ASSERT_EQ(alone.idx, idx);
        ASSERT_TRUE(same_bits(alone.weight, row_of(all.weight, int64_t(t), g.top_k)));
      }
      ASSERT_TRUE(close(all.weight, weights, {40, g.top_k}));
      expect_same_with_threads([&](Ops& o) {
        const Routing r = route(o, g, logits, bias);
        EXPECT_EQ(r.idx, all.idx);
        return r.weight;
      });
    }
}

TEST_P(MoeGateTest, TiesGoToTheLowerIndex) {
  for (bool sigmoid : {false, true}) {
    Gate g{16, 4, sigmoid, true, true, 4, 2, 1.0f};
    EXPECT_EQ(route(ops(), g, std::vector<float>(16, 0.5f), {}).idx, (std::vector<int32_t>{0, 1, 2, 3}));
    std::vector<float> logits(16, 0.0f);
    logits[13] = logits[9] = logits[10] = logits[14] = 1.0f;
    EXPECT_EQ(route(ops(), g, logits, {}).idx, (std::vector<int32_t>{9, 10, 13, 14}));
    g.top_k = 8;
    EXPECT_EQ(route(ops(), g, std::vector<float>(16, -3.0f), {}).idx, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  }
}

// The sum of the two best decides between groups only where it is asked for.
TEST_P(MoeGateTest, GroupScores) {
  Gate g{8, 2, true, false, true, 2, 1, 1.0f};
  const std::vector<float> logits = {4, -9, -9, -9, 3, 3, -9, -9};
  EXPECT_EQ(route(ops(), g, logits, {}).idx, (std::vector<int32_t>{4, 5}));
  g.group_score_top2 = false;
  EXPECT_EQ(route(ops(), g, logits, {}).idx, (std::vector<int32_t>{0, 1}));
}

TEST_P(MoeGateTest, TheBiasPicksAndNeverWeighs) {
  const Gate g{4, 2, true, false, false, 1, 1, 1.0f};
  const Routing r = route(ops(), g, {0, 0, 0, 0}, {-1, 5, -2, 3});
  EXPECT_EQ(r.idx, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(r.weight, (std::vector<float>{0.5f, 0.5f}));
}

// A checkpoint may hold any number. Whatever comes, a token's experts are distinct and exist: dispatch has room for no
// more.
TEST_P(MoeGateTest, SpecialValuesGiveDistinctExperts) {
  const float inf = INFINITY, nan = NAN, low = std::numeric_limits<float>::lowest();
  const std::vector<std::vector<float>> rows = {{-inf, -inf, -inf, -inf, -inf, -inf, -inf, -inf},
                                                {nan, nan, nan, nan, nan, nan, nan, nan},
                                                {nan, 1, 2, 3, 4, 5, 6, 7},
                                                {1, 2, nan, 3, inf, -inf, nan, 0},
                                                {inf, inf, inf, inf, inf, inf, inf, inf},
                                                {low, low, low, 0, -inf, low, low, low},
                                                {-inf, -inf, 3, -inf, -inf, -inf, 1, -inf}};
  const std::vector<std::vector<float>> biases = {{},
                                                  {-inf, -inf, -inf, -inf, -inf, -inf, -inf, -inf},
                                                  {nan, nan, nan, nan, nan, nan, nan, nan},
                                                  {inf, -inf, 0, nan, low, 1, 2, 3},
                                                  {low, low, low, low, low, low, low, low}};
  for (bool sigmoid : {false, true})
    for (bool top2 : {false, true})
      for (auto [top_k, groups, kept] : {std::array<int, 3>{8, 1, 1}, {4, 4, 2}, {2, 4, 1}, {6, 4, 3}, {3, 1, 1}})
        for (const auto& logits : rows)
          for (const auto& bias : biases) {
            const Routing r = route(ops(), {8, top_k, sigmoid, true, top2, groups, kept, 1.0f}, logits, bias);
            const std::set<int32_t> distinct(r.idx.begin(), r.idx.end());
            std::set<int32_t> used_groups;
            for (int32_t e : distinct) used_groups.insert(e / (8 / groups));
            ASSERT_EQ(int(distinct.size()), top_k)
                << testing::PrintToString(logits) << " bias " << testing::PrintToString(bias);
            ASSERT_LE(int(used_groups.size()), kept)
                << testing::PrintToString(logits) << " bias " << testing::PrintToString(bias);
            ASSERT_GE(*distinct.begin(), 0);
            ASSERT_LT(*distinct.rbegin(), 8);
          }
  // Where some logits are -infinity and others are not, the finite ones win, in order.
  EXPECT_EQ(route(ops(), {8, 3, false, true, false, 1, 1, 1.0f}, rows.back(), {}).idx, (std::vector<int32_t>{2, 6, 0}));
}

// Choices are added to the counters of the physical experts that compute them; rows without a position are padding.
// (The sizes take both kernels of the GPU.)
TEST_P(MoeGateTest, CountsChoicesPerPhysicalExpert) {
  for (const Gate& g : {Gate{.num_experts = 7, .top_k = 3}, Gate{.num_experts = 64, .top_k = 6},
                        Gate{.num_experts = 256, .top_k = 8, .sigmoid = true, .num_groups = 8, .num_topk_groups = 4}})
    for (int64_t rank : {0, 3})
      for (int max_replicas : {1, 3})
        for (int64_t tokens : {0, 1, 70, 600}) {
          SCOPED_TRACE(
              fmt::format("{} experts, rank {}, {} replicas, {} tokens", g.num_experts, rank, max_replicas, tokens));
          Random random(uint64_t(tokens + rank));
          const std::vector<float> logits = random.floats(tokens * g.num_experts, 4.0f);
          std::vector<int32_t> positions, begin = {0};
          for (int64_t t = 0; t < tokens; ++t) positions.push_back(t % 5 == 4 ? -1 : int32_t(random.below(1000)));
          for (int64_t e = 0; e < g.num_experts; ++e)
            begin.push_back(begin.back() + (max_replicas == 1 ? 1 : 1 + int32_t(random.below(3))));
          std::vector<int64_t> counts, expected;
          for (int32_t p = 0; p < begin.back(); ++p) counts.push_back(p % 3 == 0 ? int64_t{1} << 40 : p);
          expected = counts;
          ExpertCounting count = {.counts = View<int64_t>(counts.data(), {int64_t(counts.size())}),
                                  .positions = View<const int32_t>(positions.data(), {tokens}),
                                  .rank = rank};
          if (max_replicas > 1) count.replica_begin = View<const int32_t>(begin.data(), {g.num_experts + 1});
          const Routing r = route(ops(), g, logits, {}, count);
          for (int64_t i = 0; i < tokens * g.top_k; ++i) {
            const int64_t t = i / g.top_k;
            if (positions[size_t(t)] < 0) continue;
            const auto e = size_t(r.idx[size_t(i)]);
            const int64_t num = begin[e + 1] - begin[e];
            ++expected[size_t(begin[e] + (rank + t) % num)];
          }
          EXPECT_EQ(counts, expected);
          EXPECT_EQ(r.idx, route(ops(), g, logits, {}).idx) << "counting changes no choice";
        }
}

// Normalising divides by the sum of the weights, or by norm_min where that is larger (ERNIE's moe_norm_min).
TEST_P(MoeGateTest, NormalisesByAtLeastTheMinimum) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  Gate g = {.num_experts = 4, .top_k = 2, .normalize = true};
  for (float norm_min : {0.0f, 0.7f, 0.9f}) {
    g.norm_min = norm_min;
    const Routing r = route(ops(), g, logits, {});
    const float sum = std::max(0.8f, norm_min);
    EXPECT_NEAR(r.weight[0], 0.5f / sum, 1e-6f);
    EXPECT_NEAR(r.weight[1], 0.3f / sum, 1e-6f);
  }
}

}  // namespace
}  // namespace moectl::test
