// The last launch of sample_rows: one thread block per row samples the token and computes the logprobs.
//
// Best first (top_k, top_p, the best of the logprobs): the histogram of the previous launch tells up to which bin the
// tokens in question are; these are collected from the chunks of the row that have any, sorted in shared memory, and
// their weights summed in that order, exactly as in sampler.cpp. Where they are too many for that (a flat
// distribution), a radix descent over the whole row finds the n-th token, or the one at which the sum of weights in
// order exceeds a target, with integer sums.
#include <algorithm>

#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/sample/sample_block.cuh"

namespace moectl::cuda {
namespace kernel {

// total_weight() of sampler.cpp. s.cumulative[b] becomes the weight of the blocks 0 .. b, in the order of ids.
__device__ double total_weight(ChooseShared& s, const RowView& row) {
  for (int b = int(threadIdx.x); b < row.blocks; b += num_threads()) s.cumulative[b] = row.sums[b];
  __syncthreads();
  if (threadIdx.x == 0) sum_by_one(s, 0, row.blocks, 0.0);
  __syncthreads();
  return s.cumulative[row.blocks - 1];
}

// draw_by_id() of sampler.cpp.
__device__ int draw_by_id(ChooseShared& s, const RowView& row, const Weights& weigh, double u) {
  const double total = total_weight(s, row);
  double target = u * total;
  if (target >= total) target = __longlong_as_double(__double_as_longlong(total) - 1);  // the next lower double
  const int block = min(first_index(s, row.blocks, [&](int b) { return s.cumulative[b] > target; }), row.blocks - 1);
  const double below = block > 0 ? s.cumulative[block - 1] : 0.0;
  const int begin = block * kSumBlock, n = min(kSumBlock, row.size - begin);
  __syncthreads();
  for (int i = int(threadIdx.x); i < n; i += num_threads()) s.cumulative[i] = double(weigh(row.x[begin + i]));
  __syncthreads();
  if (threadIdx.x == 0) sum_by_one(s, 0, n, below);
  __syncthreads();
  int i = first_index(s, n, [&](int j) { return s.cumulative[j] > target; });
  // Where the block's two sums differ in the last bit: its last id with any weight.
  if (i == n)
    for (--i; i > 0 && weigh(row.x[begin + i]) == 0.0f;) --i;
  return begin + i;
}

// ------------------------------------------------------------------------------------------------ best first

// Weights of the candidates of top_k and top_p; 0 for other tokens.
struct Candidates {
  Weights weigh;
  double floor;
  __device__ float operator()(float logit) const {
    const float w = weigh(logit);
    return double(w) >= floor ? w : 0.0f;
  }
};

// Sums the weights of s.sorted[0 .. n - 1] in order, each sum rounded, into s.cumulative. Weights descend, so sums are
// exact in any order as long as they stay below 2^29 times the next weight, and so have at most 53 bits; from there on
// one thread adds alone.
__device__ void sum_in_order(ChooseShared& s, const Weights& weigh, int n) {
  const auto weight = [&](int i) { return double(weigh(packed_logit(s.sorted[i]))); };
  const int each = (n + num_threads() - 1) / num_threads();
  const int begin = min(int(threadIdx.x) * each, n), end = min(begin + each, n);
  double own = 0.0, total;
  for (int i = begin; i < end; ++i) own += weight(i);
  double sum = block_scan(s, own, total);
  for (int i = begin; i < end; ++i) s.cumulative[i] = sum += weight(i);
  __syncthreads();
  const int inexact = first_index(s, n, [&](int i) { return s.cumulative[i] > 0x1p29 * weight(i); });
  if (inexact == n) return;
  const double start = inexact > 0 ? s.cumulative[inexact - 1] : 0.0;
  __syncthreads();
  for (int i = inexact + int(threadIdx.x); i < n; i += num_threads()) s.cumulative[i] = weight(i);
  __syncthreads();
  if (threadIdx.x == 0) sum_by_one(s, inexact, n, start);
  __syncthreads();
}

// draw_best_first() of sampler.cpp, for more tokens than s.sorted holds. `kth`: the last of top_k, packed; 0: none.
// Weights are summed as whole multiples of a unit: that of the bins, which hold sums for top_p alone, or of the total's
// last bit.
__device__ __noinline__ int draw_among_many(ChooseShared& s, const RowView& view, const SamplingRow& row,
                                            const Candidates& weigh, uint64 kth, double total) {
  const bool top_k = has_top_k(row, view.size);
  const Binning binning = binning_of(weigh.weigh);
  const uint64* bins = top_k ? nullptr : view.bins;
  const double per_unit = top_k ? exp2(double(60 - ilogb(total))) : double(kMassUnit), unit = 1.0 / per_unit;
  const auto mass = [&](float logit) { return uint64(double(weigh(logit)) * per_unit); };
  Place end;  // the last token that is kept
  end.token = kth;
  const auto sum_up_to_end = [&] {
    uint64 sum = 0;
    for_each(view, [&](int id, float logit) { sum += packed(logit, id) >= end.token ? mass(logit) : 0; });
    block_scan(s, sum, end.sum);
  };
  if (top_k) sum_up_to_end();
  if (row.top_p < 1.0f) {
    const uint64 enough = uint64(ceil(double(row.top_p) * (top_k ? double(end.sum) * unit : total) * per_unit));
    const Place p = descend(s, view, binning, bins, enough > 0 ? enough - 1 : 0, mass);
    if (p.token > end.token) end = p;
  }
  if (end.token == 0) {  // top_p keeps all, within rounding
    sum_up_to_end();
    end = descend(s, view, binning, nullptr, end.sum - 1, mass);
  }
  const Place drawn = descend(s, view, binning, bins, uint64(row.uniform * (double(end.sum) * unit) * per_unit), mass);
  return packed_id(drawn.token > end.token ? drawn.token : end.token);
}

// draw_best_first() of sampler.cpp.
__device__ int draw_best_first(ChooseShared& s, const RowView& view, const SamplingRow& row, const Weights& weigh) {
  const bool top_k = has_top_k(row, view.size);
  double total = top_k ? 0.0 : total_weight(s, view);
  const Candidates candidates{weigh, top_k ? 0.0 : (1.0 - double(row.top_p)) * total / double(view.size)};
  // The mass that top_p keeps, with a margin for the rounding of the bins' sums.
  const uint64 need = top_k ? uint64(row.top_k)
                            : uint64(double(row.top_p) * total * (1.0 + 1e-6) * double(kMassUnit)) + uint64(view.size);
  const int last_bin = bin_with(s, view.bins, need);
  const Binning binning = binning_of(weigh);
  int n = collect(s, view, [&](int, float logit) { return binning(logit) <= last_bin && candidates(logit) > 0.0f; });
  if (n > kMaxSorted) {
    uint64 kth = 0;
    if (top_k) {
      kth = descend(s, view, binning, view.bins, uint64(row.top_k) - 1, [&](float logit) {
              return uint64(candidates(logit) > 0.0f);
            }).token;
      total = total_weight(s, view);
    }
    if (!top_k || row.top_k > kMaxSorted) return draw_among_many(s, view, row, candidates, kth, total);
    n = collect(s, view, [&](int id, float logit) { return packed(logit, id) >= kth && candidates(logit) > 0.0f; });
  }
  if (top_k) n = min(n, row.top_k);
  sum_in_order(s, weigh, n);
  int kept = n;
  if (row.top_p < 1.0f) {
    const double enough = double(row.top_p) * (top_k ? s.cumulative[n - 1] : total);
    kept = min(first_index(s, n, [&](int i) { return s.cumulative[i] >= enough; }) + 1, n);
  }
  const double target = row.uniform * s.cumulative[kept - 1];
  const int i = first_index(s, kept, [&](int j) { return s.cumulative[j] > target; });
  return packed_id(s.sorted[min(i, kept - 1)]);
}

// ------------------------------------------------------------------------------------------------ logprobs

// Each warp computes it alone, so that the order of the sum is the same for any number of threads.
__device__ double log_sum(const RowView& row, float max) {
  double sum = 0.0;
  for (int b = lane(); b < row.blocks; b += 32) sum += row.sums[b];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return double(max) + log(sum);
}

// The `num_top` best tokens of a row to s.sorted.
__device__ void find_top(ChooseShared& s, const RowView& row, int num_top, float max) {
  const Binning binning = raw_binning(max);
  const int last_bin = bin_with(s, row.bins, uint64(num_top));
  const int n = collect(s, row, [&](int, float logit) { return binning(logit) <= last_bin; });
  if (n <= kMaxSorted) return;
  const uint64 last = descend(s, row, binning, row.bins, uint64(num_top) - 1, [](float) { return uint64{1}; }).token;
  collect(s, row, [&](int id, float logit) { return packed(logit, id) >= last; });
}

__global__ void __launch_bounds__(kMaxThreads)
    sample_choose(const float* logits, const SamplingRow* rows, SampledRow* out, int32_t* next_token_ids,
                  SampleScratch scratch, SampleShape shape) {
  extern __shared__ __align__(16) unsigned char memory[];
  ChooseShared& s = *reinterpret_cast<ChooseShared*>(memory);
  const int index = int(blockIdx.x);
  const SamplingRow& row = rows[index];
  SampledRow& result = out[index];
  if (threadIdx.x < 32) {
    const RowState state = row_state(scratch, row, index, shape.chunks);
    if (threadIdx.x == 0) s.state = state;
  }
  __syncthreads();
  const RowState state = s.state;
  const bool ok = state.status == SampledStatus::kOk;
  const int64_t chunk = int64_t{index} * shape.chunks, block = int64_t{index} * shape.blocks,
                bin = int64_t{index} * kBins;
  int id = !ok ? 0 : row.given_id >= 0 ? row.given_id : packed_id(state.best);
  if (ok && draws(row)) {
    const bool adjusted = row.adjust_begin < row.adjust_end;
    const RowView view{drawn_row(scratch, logits, row, index, shape.vocab_size),
                       (adjusted ? scratch.best : scratch.raw_best) + chunk,
                       scratch.sums + block,
                       scratch.bins + bin,
                       shape.vocab_size,
                       shape.chunks,
                       shape.blocks};
    const Weights weigh = weights_of(row, packed_logit(state.best));
    id = best_first(row, shape.vocab_size) ? draw_best_first(s, view, row, weigh)
                                           : draw_by_id(s, view, weigh, row.uniform);
  }
  const int num_top = ok ? min(min(max(row.num_logprobs, 0), kMaxTopLogprobs), shape.vocab_size) : 0;
  if (threadIdx.x == 0) {
    result.token_id = id;
    result.status = state.status;
    result.num_top = num_top;
    result.logprob = 0.0f;
    if (next_token_ids) next_token_ids[index] = id;
  }
  if (!ok || row.num_logprobs < 0) return;
  __syncthreads();
  const RowView raw{logits + int64_t{index} * shape.vocab_size,
                    scratch.raw_best + chunk,
                    scratch.raw_sums + block,
                    scratch.raw_bins + bin,
                    shape.vocab_size,
                    shape.chunks,
                    shape.blocks};
  const float max = packed_logit(state.raw_best);
  const double log_of_sum = log_sum(raw, max);
  if (threadIdx.x == 0) result.logprob = float(double(raw.x[id]) - log_of_sum);
  if (num_top == 0) return;
  find_top(s, raw, num_top, max);
  if (int(threadIdx.x) < num_top) {
    const uint64 token = s.sorted[threadIdx.x];
    result.top_ids[threadIdx.x] = packed_id(token);
    result.top_logprobs[threadIdx.x] = float(double(packed_logit(token)) - log_of_sum);
  }
}

}  // namespace kernel

void launch_sample_choose(const SampleRowsArgs& a, const kernel::SampleScratch& scratch,
                          const kernel::SampleShape& shape, Stream stream) {
  constexpr int kSharedBytes = int(sizeof(kernel::ChooseShared));
  allow_shared_memory<kernel::sample_choose>(kSharedBytes);
  // Few rows: the lowest latency per row. Many: three blocks per multiprocessor, whose single-threaded phases overlap.
  const unsigned threads = shape.num_rows <= 128 ? kernel::kMaxThreads : 256;
  kernel::sample_choose<<<unsigned(shape.num_rows), threads, kSharedBytes, static_cast<cudaStream_t>(stream.handle)>>>(
      a.logits.data, a.rows.data, a.out.data, a.next_token_ids.data, scratch, shape);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
