#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/path_begin.h"

namespace {

void gate_scores(const float* logits, int64_t num_experts, bool sigmoid, float* scores) {
  if (sigmoid) {
    for (int64_t e = 0; e < num_experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  float max = *std::max_element(logits, logits + num_experts), sum = 0.0f;
  for (int64_t e = 0; e < num_experts; ++e) {
    scores[e] = std::exp(logits[e] - max);
    sum = sum + scores[e];
  }
  for (int64_t e = 0; e < num_experts; ++e) scores[e] = scores[e] / sum;
}

// Index of the largest value; ties to the lowest index. Values already taken are -infinity.
int64_t arg_max(const float* v, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i)
    if (v[i] > v[best]) best = i;
  return best;
}

// Of an expert or group that is taken or out of the running. What runs is at least kLowest, NaN and -infinity too, so
// that a token's experts are distinct whatever a checkpoint makes of the logits: the exchange has room for no more.
constexpr float kOut = -std::numeric_limits<float>::infinity(), kLowest = std::numeric_limits<float>::lowest();

float in_the_running(float v) {
  return v >= kLowest ? v : kLowest;
}

// Leaves only the experts of the best groups in the running.
void keep_best_groups(const MoeGateArgs& a, float* choice, int64_t num_experts, float* group_score) {
  const int64_t size = num_experts / a.num_groups;
  for (int g = 0; g < a.num_groups; ++g) {
    float best = kOut, second = kOut;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      if (choice[e] > best) {
        second = best;
        best = choice[e];
      } else if (choice[e] > second) {
        second = choice[e];
      }
    }
    group_score[g] = in_the_running(a.group_score_top2 && size > 1 ? best + second : best);
  }
  for (int taken = 0; taken < a.num_topk_groups; ++taken) {
    int64_t g = arg_max(group_score, a.num_groups);
    group_score[g] = kOut;
  }
  for (int g = 0; g < a.num_groups; ++g)
    if (group_score[g] != kOut) std::fill(choice + g * size, choice + (g + 1) * size, kOut);
}

// On one thread: the tokens of all threads share the counters, and this is a small part of the gate's work.
void count_choices(const ExpertCounting& c, const View<int32_t>& expert_idx) {
  CHECK(c.positions.dim(0) == expert_idx.dim(0), "{} positions for {} tokens", c.positions.dim(0), expert_idx.dim(0));
  for (int64_t t = 0; t < expert_idx.dim(0); ++t) {
    if (c.positions(t) < 0) continue;
    for (int64_t j = 0; j < expert_idx.dim(1); ++j) {
      int64_t physical = expert_idx(t, j);
      if (c.replica_begin) {
        const int64_t first = c.replica_begin(physical), num = c.replica_begin(physical + 1) - first;
        physical = first + (c.rank + t) % num;
      }
      ++c.counts(physical);
    }
  }
}

}  // namespace

void CpuOps::moe_gate(const MoeGateArgs& a, Stream) {
  const int64_t num_experts = a.logits.dim(1), top_k = a.expert_idx.dim(1);
  CHECK(top_k <= num_experts / a.num_groups * a.num_topk_groups, "{} experts a token of {} groups of {}", top_k,
        a.num_topk_groups, num_experts / a.num_groups);
  pool_.parallel_for(
      a.logits.dim(0), kMinWorkPerThread / (num_experts * (top_k + 16)) + 1, [&](int64_t begin, int64_t end) {
        thread_local std::vector<float> scratch;
        scratch.resize(size_t(2 * num_experts + a.num_groups));
        float *scores = scratch.data(), *choice = scores + num_experts, *group_score = choice + num_experts;
        for (int64_t t = begin; t < end; ++t) {
          gate_scores(a.logits.row(t), num_experts, a.sigmoid, scores);
          for (int64_t e = 0; e < num_experts; ++e)
            choice[e] = in_the_running(a.bias ? scores[e] + a.bias(e) : scores[e]);
          if (a.num_topk_groups < a.num_groups) keep_best_groups(a, choice, num_experts, group_score);
          float sum = 0.0f;
          for (int64_t j = 0; j < top_k; ++j) {
            int64_t e = arg_max(choice, num_experts);
            choice[e] = kOut;
            a.expert_idx(t, j) = int32_t(e);
            a.expert_weight(t, j) = scores[e];
            sum = sum + scores[e];
          }
          for (int64_t j = 0; j < top_k; ++j) {
            float weight = a.expert_weight(t, j);
            if (a.normalize) weight = weight / std::max(sum + 1e-20f, a.norm_min);
            a.expert_weight(t, j) = weight * a.scale;
          }
        }
      });
  if (a.count.counts) count_choices(a.count, a.expert_idx);
}

#include "kernels/cpu/path_end.h"
