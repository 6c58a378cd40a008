// The last launch of sample_rows: one thread block a row chooses the token and gives the logprobs.
//
// Best first (top_k, top_p, the best of the logprobs): the bins that the launch before filled say up to which bin the
// tokens in question lie; these are collected in shared memory, sorted, and their weights summed in that order, exactly
// as sampler.cpp does. Where they are too many for that (a flat distribution), a radix descent over the whole row finds
// the n-th token, or the one where the sum of weights in order passes a target, in three passes with integer sums.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/sample.cuh"

namespace moectl::cuda {
namespace kernel {

constexpr int kMaxThreads = 1024;  // any power of two from 64 on is right
constexpr int kMaxSorted = 4096;
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;

struct ChooseShared {
  uint64 sorted[kMaxSorted];  // packed tokens, best first
  union {
    double cumulative[kMaxSorted];  // weight of sorted[0 .. i]
    struct {
      double prefix[kMaxBlocks + 1];  // weight of the blocks before
      float weights[kSumBlock];
    } by_id;
    uint32_t digits[2][kDigits];  // low and high halves of sums
  };
  uint64 scan_u64[32];
  double scan_f64[32];
  RowState state;
  uint64 found, before;
  int count, index;
};

// ------------------------------------------------------------------------------------------------ of a whole block

__device__ int num_threads() {
  return int(blockDim.x);
}

__device__ uint64* scan_space(ChooseShared& s, uint64) {
  return s.scan_u64;
}
__device__ double* scan_space(ChooseShared& s, double) {
  return s.scan_f64;
}

// The sum of the values of the threads before this one; `total` of all.
template <class T>
__device__ T block_scan(ChooseShared& s, T v, T& total) {
  T* of_warps = scan_space(s, T{});
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  for (int offset = 1; offset < 32; offset *= 2) {
    const T o = __shfl_up_sync(0xffffffffu, v, offset);
    if (lane >= offset) v += o;
  }
  if (lane == 31) of_warps[warp] = v;
  v = __shfl_up_sync(0xffffffffu, v, 1);
  __syncthreads();
  T below = 0;
  total = 0;
  for (int w = 0; w < int(blockDim.x / 32); ++w) {
    if (w < warp) below += of_warps[w];
    total += of_warps[w];
  }
  __syncthreads();
  return lane == 0 ? below : below + v;
}

// The lowest i in 0 .. n - 1 for which `holds`, else n.
template <class F>
__device__ int first_index(ChooseShared& s, int n, F holds) {
  if (threadIdx.x == 0) s.index = n;
  __syncthreads();
  for (int i = int(threadIdx.x); i < n; i += num_threads())
    if (holds(i)) {
      atomicMin(&s.index, i);
      break;
    }
  __syncthreads();
  const int found = s.index;
  __syncthreads();
  return found;
}

// f(id, logit) for every id, in any order.
template <class F>
__device__ void for_each(const float* row, int size, F f) {
  int id = 4 * int(threadIdx.x);
  if (size % 4 == 0 && reinterpret_cast<uintptr_t>(row) % 16 == 0) {
    constexpr int kAhead = 4;  // loads in flight
    const int step = 4 * num_threads();
    for (; id < size; id += kAhead * step) {
      float4 v[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int i = id + k * step;
        if (i < size) v[k] = *reinterpret_cast<const float4*>(row + i);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int i = id + k * step;
        if (i >= size) break;
        f(i, v[k].x), f(i + 1, v[k].y), f(i + 2, v[k].z), f(i + 3, v[k].w);
      }
    }
    return;
  }
  for (int i = int(threadIdx.x); i < size; i += num_threads()) f(i, row[i]);
}

// Tokens for which `wanted` into s.sorted, best first; returns their number, and leaves them out where it is above
// kMaxSorted.
template <class F>
__device__ int collect(ChooseShared& s, const float* row, int size, F wanted) {
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  for_each(row, size, [&](int id, float logit) {
    if (!wanted(id, logit)) return;
    const int place = atomicAdd(&s.count, 1);
    if (place < kMaxSorted) s.sorted[place] = packed(logit, id);
  });
  __syncthreads();
  const int n = s.count;
  if (n > kMaxSorted) return n;
  int width = 2;  // of the sort: a power of two
  while (width < n) width *= 2;
  for (int i = n + int(threadIdx.x); i < width; i += num_threads()) s.sorted[i] = 0;
  __syncthreads();
  for (int k = 2; k <= width; k *= 2)  // bitonic
    for (int j = k / 2; j > 0; j /= 2) {
      for (int i = int(threadIdx.x); i < width / 2; i += num_threads()) {
        const int a = 2 * i - (i & (j - 1)), b = a + j;
        const uint64 x = s.sorted[a], y = s.sorted[b];
        if ((x < y) == ((a & k) == 0)) s.sorted[a] = y, s.sorted[b] = x;
      }
      __syncthreads();
    }
  return n;
}

// The first bin up to which the bins' sum is `need` or more; the last one where it never is.
__device__ int bin_with(ChooseShared& s, const uint64* bins, uint64 need) {
  const int each = (kBins + num_threads() - 1) / num_threads();
  const int begin = min(int(threadIdx.x) * each, kBins), end = min(begin + each, kBins);
  uint64 sum = 0, total;
  for (int b = begin; b < end; ++b) sum += bins[b];
  if (threadIdx.x == 0) s.index = kBins - 1;
  uint64 below = block_scan(s, sum, total);
  if (below < need && below + sum >= need)
    for (int b = begin; b < end; ++b) {
      below += bins[b];
      if (below < need) continue;
      s.index = b;
      break;
    }
  __syncthreads();
  const int bin = s.index;
  __syncthreads();
  return bin;
}

// ------------------------------------------------------------------------------------------------ radix descent

struct Place {
  uint64 token = 0;  // packed; 0: there is none
  uint64 sum = 0;    // of `amount` up to and with the token
};

// The first token in order, best first, at which the sum of amount(logit) passes `target`. Equal logits have equal
// amounts; a token of amount 0 is never found.
template <class F>
__device__ __noinline__ Place descend(ChooseShared& s, const float* row, int size, uint64 target, F amount) {
  uint32_t key = 0, mask = 0;  // of the token sought, and which of its bits are known
  uint64 before = 0;           // sum of the tokens with higher keys
  uint64 of_key = 0;           // sum of the tokens with this one
  for (int shift = 32 - kDigitBits;; shift = max(shift - kDigitBits, 0)) {
    const int bits = shift == 0 ? 32 - 2 * kDigitBits : kDigitBits;
    const uint32_t digit_mask = (1u << bits) - 1;
    for (int i = int(threadIdx.x); i < kDigits; i += num_threads()) s.digits[0][i] = s.digits[1][i] = 0;
    __syncthreads();
    for_each(row, size, [&](int, float logit) {
      const uint32_t k = uint32_t(packed(logit, 0) >> 32);
      if ((k & mask) != key) return;
      const uint64 n = amount(logit);
      const uint32_t low = uint32_t(n), high = uint32_t(n >> 32), digit = ~(k >> shift) & digit_mask;  // best first
      const uint32_t carry = low && atomicAdd(&s.digits[0][digit], low) > ~low;
      if (high + carry) atomicAdd(&s.digits[1][digit], high + carry);
    });
    __syncthreads();
    const auto sum_of = [&](int digit) { return uint64{s.digits[1][digit]} << 32 | s.digits[0][digit]; };
    const int each = kDigits / num_threads(), begin = int(threadIdx.x) * each;
    uint64 sum = 0, total;
    for (int i = begin; i < begin + each; ++i) sum += sum_of(i);
    uint64 below = before + block_scan(s, sum, total);
    if (before + total <= target) return {};
    if (below <= target && below + sum > target)
      for (int i = begin; i < begin + each; ++i) {
        if (below + sum_of(i) > target) {
          s.index = i;
          s.before = below;
          s.found = sum_of(i);
          break;
        }
        below += sum_of(i);
      }
    __syncthreads();
    before = s.before;
    of_key = s.found;
    key |= (~uint32_t(s.index) & digit_mask) << shift;
    mask |= digit_mask << shift;
    __syncthreads();
    if (shift == 0) break;
  }

  // Of the tokens with this key, the one of rank (target - before) / each, by id: each warp counts in its part of the
  // row, and the one that has it looks again.
  const uint64 each = amount(key_logit(key));
  const int rank = int((target - before) / each);
  const int part = (size + num_threads() - 1) / num_threads() * 32, begin = int(threadIdx.x / 32) * part;
  const auto is_tie = [&](int id) { return id < size && uint32_t(packed(row[id], 0) >> 32) == key; };
  int ties = 0;
  for (int i = 0; i < part; i += 32)
    ties += __popc(__ballot_sync(0xffffffffu, is_tie(begin + i + int(threadIdx.x % 32))));
  uint64 total;
  const uint64 before_warp = block_scan(s, uint64(threadIdx.x % 32 == 0 ? ties : 0), total);
  int left = rank - int(__shfl_sync(0xffffffffu, before_warp, 0));  // to go in this warp's part
  if (left >= 0 && left < ties)
    for (int i = 0; i < part; i += 32) {
      const int id = begin + i + int(threadIdx.x % 32);
      const uint32_t here = __ballot_sync(0xffffffffu, is_tie(id));
      const int rank_here = __popc(here & ((1u << (threadIdx.x % 32)) - 1));
      if ((here >> (threadIdx.x % 32) & 1) && rank_here == left) s.found = uint64{key} << 32 | uint32_t(~id);
      left -= __popc(here);
      if (left < 0) break;
    }
  __syncthreads();
  const Place place{s.found, before + each * uint64(rank + 1)};
  __syncthreads();
  return place;
}

// ------------------------------------------------------------------------------------------------ the draw

// sampler.cpp: total_weight(). s.by_id.prefix[b] is the weight of the blocks before b, in the order of ids.
__device__ double total_weight(ChooseShared& s, const double* sums, int blocks) {
  double* prefix = s.by_id.prefix;
  for (int b = int(threadIdx.x); b < blocks; b += num_threads()) prefix[b + 1] = sums[b];
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = prefix[0] = 0.0;
    constexpr int kAhead = 8;  // loads before the chain of additions that waits for them
    for (int b = 1; b <= blocks; b += kAhead) {
      double v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) v[i] = b + i <= blocks ? prefix[b + i] : 0.0;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        total += v[i];
        if (b + i <= blocks) prefix[b + i] = total;
      }
    }
  }
  __syncthreads();
  return prefix[blocks];
}

// sampler.cpp: draw_by_id(), after total_weight().
__device__ int draw_by_id(ChooseShared& s, const float* x, const Weights& weigh, double total, double u,
                          const SampleShape& shape) {
  double target = u * total;
  if (target >= total) target = __longlong_as_double(__double_as_longlong(total) - 1);  // the number before
  const int block =
      min(first_index(s, shape.blocks, [&](int b) { return s.by_id.prefix[b + 1] > target; }), shape.blocks - 1);
  const int begin = block * kSumBlock, n = min(kSumBlock, shape.vocab_size - begin);
  for (int i = int(threadIdx.x); i < n; i += num_threads()) s.by_id.weights[i] = weigh(x[begin + i]);
  __syncthreads();
  if (threadIdx.x == 0) {
    int last = 0;
    double below = s.by_id.prefix[block];
#pragma unroll 8
    for (int i = 0; i < n; ++i) {
      const float w = s.by_id.weights[i];
      if (below <= target && w > 0.0f) last = begin + i;
      below += double(w);
    }
    s.index = last;
  }
  __syncthreads();
  return s.index;
}

// Weights of s.sorted[0 .. n - 1] summed in order, each sum rounded, into s.cumulative. As weights fall, sums are exact
// in any order up to the first that is no multiple of a weight's last bit in 53 bits; from there on one thread goes on
// alone.
__device__ void sum_in_order(ChooseShared& s, const Weights& weigh, int n) {
  const auto weight = [&](int i) { return double(weigh(packed_logit(s.sorted[i]))); };
  const int each = (n + num_threads() - 1) / num_threads();
  const int begin = min(int(threadIdx.x) * each, n), end = min(begin + each, n);
  double mine = 0.0, total;
  for (int i = begin; i < end; ++i) mine += weight(i);
  double sum = block_scan(s, mine, total);
  for (int i = begin; i < end; ++i) s.cumulative[i] = sum += weight(i);
  __syncthreads();
  constexpr double kExact = 0x1p29;
  const int inexact =
      first_index(s, n, [&](int i) { return s.cumulative[i] > kExact * double(weigh(packed_logit(s.sorted[i]))); });
  if (threadIdx.x == 0 && inexact < n) {
    double c = inexact > 0 ? s.cumulative[inexact - 1] : 0.0;
    for (int i = inexact; i < n; ++i) s.cumulative[i] = c += weight(i);
  }
  __syncthreads();
}

// Weights of the tokens that top_k and top_p choose among; 0 for the others.
struct Candidates {
  Weights weigh;
  double floor;
  __device__ float operator()(float logit) const {
    const float w = weigh(logit);
    return double(w) >= floor ? w : 0.0f;
  }
};

// The same for more tokens than s.sorted holds, in integer sums; `kth`: the last of top_k, packed; 0: none.
__device__ __noinline__ int draw_among_many(ChooseShared& s, const float* x, const SamplingRow& row,
                                            const Candidates& weigh, uint64 kth, double total, int size) {
  const bool top_k = has_top_k(row, size);
  const double unit = exp2(double(ilogb(total) - 60)), per_unit = 1.0 / unit;  // powers of two: the whole has 61 bits
  const auto mass = [&](float logit) { return uint64(double(weigh(logit)) * per_unit); };
  Place end;  // the last that is kept
  end.token = kth;
  uint64 sum = 0;
  for_each(x, size, [&](int id, float logit) { sum += packed(logit, id) >= kth ? mass(logit) : 0; });
  block_scan(s, sum, end.sum);
  if (row.top_p < 1.0f) {
    const uint64 enough = uint64(ceil(double(row.top_p) * (top_k ? double(end.sum) * unit : total) * per_unit));
    const Place p = descend(s, x, size, enough > 0 ? enough - 1 : 0, mass);
    if (p.token > end.token) end = p;
  }
  const Place drawn = descend(s, x, size, uint64(row.uniform * (double(end.sum) * unit) * per_unit), mass);
  if (drawn.token > end.token) return packed_id(drawn.token);
  // Only a draw within rounding of 1 comes here: the last one kept.
  if (end.token == 0) end = descend(s, x, size, end.sum - 1, mass);
  return packed_id(end.token);
}

// sampler.cpp: draw_best_first(). `total`: of all tokens.
__device__ int draw_best_first(ChooseShared& s, const float* x, const SamplingRow& row, const Weights& weigh,
                               double total, const uint64* bins, int size) {
  const bool top_k = has_top_k(row, size), top_p = row.top_p < 1.0f;
  const Candidates candidates{weigh, top_k ? 0.0 : (1.0 - double(row.top_p)) * total / double(size)};
  // What top_p asks for, with a margin for what the bins' sums were rounded by.
  const uint64 need =
      top_k ? uint64(row.top_k) : uint64(double(row.top_p) * total * (1.0 + 1e-6) * double(kMassUnit)) + uint64(size);
  const int last_bin = bin_with(s, bins, need);
  const float per_logit = bins_per_logit(weigh.scale);
  int n = collect(s, x, size, [&](int, float logit) {
    return bin_of(logit, weigh.max, per_logit) <= last_bin && candidates(logit) > 0.0f;
  });
  uint64 kth = 0;  // packed; the last of top_k
  if (n > kMaxSorted && top_k) {
    kth =
        descend(s, x, size, uint64(row.top_k) - 1, [&](float logit) { return uint64(candidates(logit) > 0.0f); }).token;
    if (row.top_k <= kMaxSorted)
      n = collect(s, x, size,
                  [&](int id, float logit) { return packed(logit, id) >= kth && candidates(logit) > 0.0f; });
  }
  if (n <= kMaxSorted) {
    if (top_k) n = min(n, row.top_k);
    sum_in_order(s, weigh, n);
    int kept = n;
    if (top_p) {
      const double enough = double(row.top_p) * (top_k ? s.cumulative[n - 1] : total);
      kept = min(first_index(s, n, [&](int i) { return s.cumulative[i] >= enough; }) + 1, n);
    }
    const double target = row.uniform * s.cumulative[kept - 1];
    const int i = first_index(s, kept, [&](int j) { return s.cumulative[j] > target; });
    return packed_id(s.sorted[min(i, kept - 1)]);
  }

  return draw_among_many(s, x, row, candidates, kth, total, size);
}

// ------------------------------------------------------------------------------------------------ logprobs

// By each warp alone, so that the order of the sum is the same with every number of threads.
__device__ double raw_log_sum(const double* sums, int blocks, float max) {
  double sum = 0.0;
  for (int b = int(threadIdx.x % 32); b < blocks; b += 32) sum += sums[b];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return double(max) + log(sum);
}

// The `num_top` best of the raw row to s.sorted.
__device__ void find_top(ChooseShared& s, const float* x, int num_top, float max, const uint64* bins, int size) {
  const int last_bin = bin_with(s, bins, uint64(num_top));
  const int n = collect(s, x, size, [&](int, float logit) { return bin_of(logit, max, kBinsPerUnit) <= last_bin; });
  if (n <= kMaxSorted) return;
  const uint64 last = descend(s, x, size, uint64(num_top) - 1, [](float) { return uint64{1}; }).token;
  collect(s, x, size, [&](int id, float logit) { return packed(logit, id) >= last; });
}

__global__ void __launch_bounds__(kMaxThreads)
    sample_choose(const float* logits, const SamplingRow* rows, SampledRow* out, int32_t* next_token_ids,
                  SampleScratch scratch, SampleShape shape) {
  extern __shared__ __align__(16) unsigned char memory[];
  ChooseShared& s = *reinterpret_cast<ChooseShared*>(memory);
  const int index = int(blockIdx.x), size = shape.vocab_size;
  const SamplingRow& row = rows[index];
  SampledRow& result = out[index];
  if (threadIdx.x < 32) {
    const RowState state = row_state(scratch, index, shape.tiles);
    if (threadIdx.x == 0) s.state = state;
  }
  __syncthreads();
  const RowState state = s.state;
  const bool ok = state.status == SampledStatus::kOk;
  int id = ok ? packed_id(state.best) : 0;
  if (ok && draws(row)) {
    const float* x = drawn_row(scratch, logits, row, index, size);
    const Weights weigh = weights_of(row, packed_logit(state.best));
    const double total = total_weight(s, scratch.sums + int64_t{index} * shape.blocks, shape.blocks);
    id = best_first(row, size) ? draw_best_first(s, x, row, weigh, total, scratch.bins + int64_t{index} * kBins, size)
                               : draw_by_id(s, x, weigh, total, row.uniform, shape);
  }
  const int num_top = ok ? min(min(max(row.num_logprobs, 0), kMaxTopLogprobs), size) : 0;
  if (threadIdx.x == 0) {
    result.token_id = id;
    result.status = state.status;
    result.num_top = num_top;
    result.logprob = 0.0f;
    if (next_token_ids) next_token_ids[index] = id;
  }
  if (!ok || row.num_logprobs < 0) return;
  __syncthreads();
  const float* raw = logits + int64_t{index} * size;
  const float max = packed_logit(state.raw_best);
  const double log_sum = raw_log_sum(scratch.raw_sums + int64_t{index} * shape.blocks, shape.blocks, max);
  if (threadIdx.x == 0) result.logprob = float(double(raw[id]) - log_sum);
  if (num_top == 0) return;
  find_top(s, raw, num_top, max, scratch.raw_bins + int64_t{index} * kBins, size);
  if (int(threadIdx.x) < num_top) {
    const uint64 token = s.sorted[threadIdx.x];
    result.top_ids[threadIdx.x] = packed_id(token);
    result.top_logprobs[threadIdx.x] = float(double(packed_logit(token)) - log_sum);
  }
}

}  // namespace kernel

void launch_sample_choose(const SampleRowsArgs& a, const kernel::SampleScratch& scratch,
                          const kernel::SampleShape& shape, Stream stream) {
  constexpr int kSharedBytes = int(sizeof(kernel::ChooseShared));
  CUDA_CHECK(cudaFuncSetAttribute(kernel::sample_choose, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  // Few rows: as fast as one can be. Many: three to a multiprocessor, whose steps of one thread overlap.
  const unsigned threads = shape.num_rows <= 128 ? kernel::kMaxThreads : 256;
  kernel::sample_choose<<<unsigned(shape.num_rows), threads, kSharedBytes, static_cast<cudaStream_t>(stream.handle)>>>(
      a.logits.data, a.rows.data, a.out.data, a.next_token_ids.data, scratch, shape);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
