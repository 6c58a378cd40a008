// Top-k routing (MoeGateArgs): a warp a token. Selection and weights are computed in the CPU backend's order, every
// exponential rounded from f64, so that equal logits pick equal experts: the largest key of a warp, then the lowest
// index that has it. At the usual numbers of experts a lane keeps its neighbouring ones in registers; at any other
// number scores lie in shared memory.
#include <cfloat>
#include <climits>

#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kMaxTokens = 4;  // of a block

// Of an expert or group that is taken or out of the running, and the least that runs, NaN and -infinity too: a token's
// experts are distinct whatever the logits are.
#define MOECTL_OUT (-INFINITY)
__device__ inline float in_the_running(float v) {
  return v >= -FLT_MAX ? v : -FLT_MAX;
}

// Orders as the values do; zeros of both signs are one value.
__device__ inline uint32_t ordered(float v) {
  const uint32_t u = __float_as_uint(v + 0.0f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Index of the largest of v [n]; ties to the lowest index.
__device__ inline int arg_max(const float* v, int n) {
  uint32_t best = 0;
  int index = INT_MAX;
  for (int i = int(threadIdx.x); i < n; i += kWarp) {
    const uint32_t key = ordered(v[i]);
    if (index == INT_MAX || key > best) {
      best = key;
      index = i;
    }
  }
  const uint32_t most = __reduce_max_sync(kAll, best);
  return int(__reduce_min_sync(kAll, unsigned(best == most ? index : INT_MAX)));
}

__device__ inline float exp_rounded(float x) {
  return float(exp(double(x)));
}

struct Gate {
  const float *logits, *bias;
  int32_t* expert_idx;
  float* expert_weight;
  int num_tokens, num_experts, top_k, num_groups, num_topk_groups;
  bool sigmoid, normalize, group_score_top2;
  float scale, norm_min;
  unsigned long long* counts;  // ExpertCounting; null: nothing is counted
  const int32_t *positions, *replica_begin;
  int rank;
};

__device__ __forceinline__ bool is_counted(const Gate& g, int64_t token) {
  return g.counts && g.positions[token] >= 0;
}

__device__ __forceinline__ void count_choice(const Gate& g, int64_t token, int expert) {
  int64_t physical = expert;
  if (g.replica_begin) {
    const int first = g.replica_begin[expert], num = g.replica_begin[expert + 1] - first;
    physical = first + (g.rank + token) % num;
  }
  atomicAdd(g.counts + physical, 1ull);
}

__device__ void gate_scores(const Gate& g, const float* logits, float* scores) {
  const int lane = int(threadIdx.x);
  if (g.sigmoid) {
    for (int e = lane; e < g.num_experts; e += kWarp) scores[e] = 1.0f / (1.0f + exp_rounded(-logits[e]));
    __syncwarp();
    return;
  }
  float max = -INFINITY;
  for (int e = lane; e < g.num_experts; e += kWarp) max = fmaxf(max, logits[e]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(kAll, max, offset));
  for (int e = lane; e < g.num_experts; e += kWarp) scores[e] = exp_rounded(__fsub_rn(logits[e], max));
  __syncwarp();
  float sum = 0.0f;  // in ascending order, by every lane alike
  for (int e = 0; e < g.num_experts; ++e) sum = __fadd_rn(sum, scores[e]);
  __syncwarp();
  for (int e = lane; e < g.num_experts; e += kWarp) scores[e] = __fdiv_rn(scores[e], sum);
  __syncwarp();
}

// Leaves only the experts of the best groups in the running.
__device__ void keep_best_groups(const Gate& g, float* choice, float* group_score) {
  const int lane = int(threadIdx.x), size = g.num_experts / g.num_groups;
  for (int group = lane; group < g.num_groups; group += kWarp) {
    float best = MOECTL_OUT, second = MOECTL_OUT;
    for (int e = group * size; e < (group + 1) * size; ++e) {
      if (choice[e] > best) {
        second = best;
        best = choice[e];
      } else if (choice[e] > second) {
        second = choice[e];
      }
    }
    group_score[group] = in_the_running(g.group_score_top2 && size > 1 ? __fadd_rn(best, second) : best);
  }
  __syncwarp();
  for (int taken = 0; taken < g.num_topk_groups; ++taken) {
    const int group = arg_max(group_score, g.num_groups);
    __syncwarp();
    if (lane == 0) group_score[group] = MOECTL_OUT;
    __syncwarp();
  }
  for (int e = lane; e < g.num_groups * size; e += kWarp)
    if (group_score[e / size] != MOECTL_OUT) choice[e] = MOECTL_OUT;
  __syncwarp();
}

// Block: (32, tokens). Shared memory: a token's scores, choice and group scores, token by token.
__global__ void moe_gate(const Gate g) {
  extern __shared__ float shared[];
  const int token = int(blockIdx.x * blockDim.y + threadIdx.y), lane = int(threadIdx.x);
  if (token >= g.num_tokens) return;
  float* scores = shared + threadIdx.y * (2 * g.num_experts + g.num_groups);
  float *choice = scores + g.num_experts, *group_score = choice + g.num_experts;
  gate_scores(g, g.logits + int64_t{token} * g.num_experts, scores);
  for (int e = lane; e < g.num_experts; e += kWarp)
    choice[e] = in_the_running(g.bias ? __fadd_rn(scores[e], g.bias[e]) : scores[e]);
  __syncwarp();
  if (g.num_topk_groups < g.num_groups) keep_best_groups(g, choice, group_score);
  const bool counted = is_counted(g, token);
  int32_t* expert_idx = g.expert_idx + int64_t{token} * g.top_k;
  float* expert_weight = g.expert_weight + int64_t{token} * g.top_k;
  float sum = 0.0f;
  for (int j = 0; j < g.top_k; ++j) {
    const int e = arg_max(choice, g.num_experts);
    __syncwarp();
    if (lane == 0) {
      choice[e] = MOECTL_OUT;
      expert_idx[j] = e;
      expert_weight[j] = scores[e];
    }
    sum = __fadd_rn(sum, scores[e]);
    __syncwarp();
  }
  for (int j = lane; j < g.top_k; j += kWarp) {
    float weight = expert_weight[j];
    if (g.normalize) weight = __fdiv_rn(weight, fmaxf(__fadd_rn(sum, 1e-20f), g.norm_min));
    expert_weight[j] = __fmul_rn(weight, g.scale);
    if (counted) count_choice(g, token, expert_idx[j]);
  }
}

// 32 N experts, lane l has N l .. N l + N - 1; groups are of whole lanes.
template <int N>
__device__ __forceinline__ void load_experts(const float* from, float (&v)[N]) {
  const float* mine = from + threadIdx.x * N;
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 x = __ldg(reinterpret_cast<const float4*>(mine + i));
      v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = __ldg(mine + i);
  }
}

template <int N>
__device__ __forceinline__ void lane_scores(bool sigmoid, float (&v)[N]) {
  if (sigmoid) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = 1.0f / (1.0f + exp_rounded(-v[i]));
    return;
  }
  __shared__ __align__(16) float all[N * kWarp];
  float max = v[0];
#pragma unroll
  for (int i = 1; i < N; ++i) max = fmaxf(max, v[i]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(kAll, max, offset));
#pragma unroll
  for (int i = 0; i < N; ++i) all[threadIdx.x * N + i] = v[i] = exp_rounded(__fsub_rn(v[i], max));
  __syncwarp();
  float sum = 0.0f;  // in ascending order, by every lane alike
#pragma unroll 4
  for (int e = 0; e < N * kWarp; e += 4) {
    const float4 x = *reinterpret_cast<const float4*>(all + e);
    sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, x.x), x.y), x.z), x.w);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = __fdiv_rn(v[i], sum);
}

// Whether this lane's group is among the best.
template <int N>
__device__ __forceinline__ bool in_best_groups(const Gate& g, const float (&choice)[N]) {
  const int lanes = kWarp / g.num_groups, mine = int(threadIdx.x) / lanes;
  float best = choice[0], second = MOECTL_OUT;
#pragma unroll
  for (int i = 1; i < N; ++i) {
    second = fmaxf(second, fminf(best, choice[i]));
    best = fmaxf(best, choice[i]);
  }
  for (int offset = 1; offset < lanes; offset *= 2) {
    const float other = __shfl_xor_sync(kAll, best, offset), other_second = __shfl_xor_sync(kAll, second, offset);
    second = fmaxf(fminf(best, other), fmaxf(second, other_second));
    best = fmaxf(best, other);
  }
  const bool two = g.group_score_top2 && N * lanes > 1;
  const uint32_t key = ordered(in_the_running(two ? __fadd_rn(best, second) : best));
  int better = 0;
  for (int group = 0; group < g.num_groups; ++group) {
    const uint32_t other = __shfl_sync(kAll, key, group * lanes);
    better += other > key || (other == key && group < mine);
  }
  return better < g.num_topk_groups;
}

// Block: a warp.
template <int N>
__global__ void __launch_bounds__(kWarp) moe_gate_lanes(const __grid_constant__ Gate g) {
  wait_for_earlier();
  const int64_t token = blockIdx.x;
  const int lane = int(threadIdx.x);
  const bool counted = is_counted(g, token);  // here, while the logits are loaded
  float score[N], choice[N];
  load_experts(g.logits + token * N * kWarp, score);
  if (g.bias) load_experts(g.bias, choice);
  lane_scores(g.sigmoid, score);
#pragma unroll
  for (int i = 0; i < N; ++i) choice[i] = in_the_running(g.bias ? __fadd_rn(score[i], choice[i]) : score[i]);
  const bool runs = g.num_topk_groups == g.num_groups || in_best_groups(g, choice);
  uint32_t key[N];  // 0: taken or out of the running
#pragma unroll
  for (int i = 0; i < N; ++i) key[i] = runs ? ordered(choice[i]) : 0u;
  float sum = 0.0f, weight = 0.0f;
  int expert = 0;  // lane j: of choice j
  for (int j = 0; j < g.top_k; ++j) {
    uint32_t best = key[0];
    float best_score = score[0];
    int index = 0;
#pragma unroll
    for (int i = 1; i < N; ++i)
      if (key[i] > best) best = key[i], best_score = score[i], index = i;
    const uint32_t most = __reduce_max_sync(kAll, best);
    const int winner = __ffs(int(__ballot_sync(kAll, best == most))) - 1;
    const float s = __shfl_sync(kAll, best_score, winner);
    const int e = __shfl_sync(kAll, lane * N + index, winner);
    if (lane == j) weight = s, expert = e;
    sum = __fadd_rn(sum, s);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (lane == winner && i == index) key[i] = 0;
  }
  if (lane >= g.top_k) return;
  if (g.normalize) weight = __fdiv_rn(weight, fmaxf(__fadd_rn(sum, 1e-20f), g.norm_min));
  g.expert_idx[token * g.top_k + lane] = expert;
  g.expert_weight[token * g.top_k + lane] = __fmul_rn(weight, g.scale);
  if (counted) count_choice(g, token, expert);
}
#undef MOECTL_OUT

}  // namespace kernel

namespace {

// Whether the experts were that many a lane.
template <int N>
bool launch_lanes(const kernel::Gate& g, cudaStream_t stream) {
  if (g.num_experts != N * kernel::kWarp || g.top_k > kernel::kWarp || kernel::kWarp % g.num_groups != 0) return false;
  if (N % 4 == 0 && (reinterpret_cast<uintptr_t>(g.logits) | reinterpret_cast<uintptr_t>(g.bias)) % 16 != 0)
    return false;
  launch_early(kernel::moe_gate_lanes<N>, unsigned(g.num_tokens), kernel::kWarp, 0, stream, g);
  return true;
}

}  // namespace

void moe_gate(const MoeGateArgs& a, Stream stream) {
  const int64_t num_tokens = a.logits.dim(0), num_experts = a.logits.dim(1), top_k = a.expert_idx.dim(1);
  CHECK(top_k <= num_experts / a.num_groups * a.num_topk_groups, "{} experts a token of {} groups of {}", top_k,
        a.num_topk_groups, num_experts / a.num_groups);
  CHECK(num_tokens <= INT_MAX, "{} tokens", num_tokens);
  CHECK(!a.count.counts || a.count.positions.dim(0) == num_tokens, "{} positions for {} tokens",
        a.count.positions.dim(0), num_tokens);
  if (num_tokens == 0) return;
  const int64_t bytes = (2 * num_experts + a.num_groups) * int64_t(sizeof(float)), room = 48 << 10;
  CHECK(bytes <= room, "moe_gate: {} experts; at most about 6,000 have room", num_experts);
  const unsigned tokens = unsigned(std::min<int64_t>(kernel::kMaxTokens, room / bytes));
  const kernel::Gate g = {.logits = a.logits.data,
                          .bias = a.bias.data,
                          .expert_idx = a.expert_idx.data,
                          .expert_weight = a.expert_weight.data,
                          .num_tokens = int(num_tokens),
                          .num_experts = int(num_experts),
                          .top_k = int(top_k),
                          .num_groups = a.num_groups,
                          .num_topk_groups = a.num_topk_groups,
                          .sigmoid = a.sigmoid,
                          .normalize = a.normalize,
                          .group_score_top2 = a.group_score_top2,
                          .scale = a.scale,
                          .norm_min = a.norm_min,
                          .counts = reinterpret_cast<unsigned long long*>(a.count.counts.data),
                          .positions = a.count.positions.data,
                          .replica_begin = a.count.replica_begin.data,
                          .rank = int(a.count.rank)};
  const cudaStream_t s = handle(stream);
  if (launch_lanes<2>(g, s) || launch_lanes<4>(g, s) || launch_lanes<5>(g, s) || launch_lanes<8>(g, s) ||
      launch_lanes<12>(g, s))
    return;
  kernel::moe_gate<<<blocks_for(num_tokens, tokens), dim3(kernel::kWarp, tokens), tokens * size_t(bytes), s>>>(g);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
