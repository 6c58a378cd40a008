// The gate against the CPU backend, experts exactly: every number of experts that has a kernel of its own, others
// beside them, with ties, NaN and infinities among the logits.
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using MoeGateGpuTest = GpuTest;

struct Gate {
  int64_t num_experts, top_k;
  int num_groups, num_topk_groups;
};

TEST_F(MoeGateGpuTest, AsOnTheCpu) {
  MirrorOps gpu(make_ops({.device = "cuda"}));
  const auto cpu = make_ops({});
  for (const Gate& g : {Gate{256, 8, 8, 4}, Gate{256, 8, 1, 1}, Gate{256, 32, 2, 1}, Gate{64, 6, 1, 1},
                        Gate{64, 2, 32, 2}, Gate{128, 8, 1, 1}, Gate{160, 6, 8, 3}, Gate{384, 8, 1, 1},
                        Gate{384, 9, 16, 5}, Gate{256, 40, 1, 1}, Gate{100, 6, 5, 2}, Gate{192, 4, 6, 2}})
    for (bool sigmoid : {false, true})
      for (bool ties : {false, true})
        for (int64_t tokens : {1, 7, 129}) {
          SCOPED_TRACE(fmt::format("{} of {}, groups {} of {}, sigmoid {}, ties {}, {} tokens", g.top_k, g.num_experts,
                                   g.num_topk_groups, g.num_groups, sigmoid, ties, tokens));
          Random random(uint64_t(g.num_experts + tokens));
          auto logits = random.floats(tokens * g.num_experts, 4.0f), bias = random.floats(g.num_experts, 0.5f);
          if (ties) {
            for (float& v : logits) v = std::round(v / 2);
            for (float& v : bias) v = 0.0f;
            if (sigmoid)
              for (size_t i = 5; i < logits.size(); i += 41) logits[i] = i % 2 ? NAN : -INFINITY;
          }
          auto run = [&](Ops& ops) {
            std::vector<int32_t> idx(size_t(tokens * g.top_k), -1);
            std::vector<float> weight(idx.size(), NAN);
            MoeGateArgs a;
            a.logits = View<const float>(logits.data(), {tokens, g.num_experts});
            if (sigmoid) a.bias = View<const float>(bias.data(), {g.num_experts});
            a.expert_idx = View<int32_t>(idx.data(), {tokens, g.top_k});
            a.expert_weight = View<float>(weight.data(), {tokens, g.top_k});
            a.sigmoid = a.group_score_top2 = a.normalize = sigmoid;
            a.num_groups = g.num_groups;
            a.num_topk_groups = g.num_topk_groups;
            a.scale = 2.5f;
            ops.moe_gate(a, {});
            return std::pair(idx, weight);
          };
          const auto [idx, weight] = run(gpu);
          const auto [cpu_idx, cpu_weight] = run(*cpu);
          ASSERT_EQ(idx, cpu_idx);
          // The CPU's exponentials are not rounded from f64, so weights may differ by their last bits.
          for (size_t i = 0; i < weight.size(); ++i) {
            if (std::isnan(cpu_weight[i])) {
              ASSERT_TRUE(std::isnan(weight[i])) << i;
              continue;
            }
            ASSERT_NEAR(weight[i], cpu_weight[i], 32 * unit_roundoff(DType::kF32) * std::abs(cpu_weight[i])) << i;
          }
        }
}

}  // namespace
}  // namespace moectl::test
