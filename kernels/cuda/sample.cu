// Sampling: rows of logits to tokens, in three launches whose shape depends on the number of rows and the vocabulary
// alone, as rows' parameters are on the device.
//   scan:   [tiles, rows] blocks read the logits once: valid or not, the best token, before and after adjustments (an
//           adjusted row is written to scratch). With temperature 0 and without logprobs this is all that a row needs.
//   sums:   of the other rows: partial sums of weights, and tokens counted by their distance from the best one, which
//           says in the next launch which few tokens top_k, top_p and the logprobs are about. Blocks share these rows
//           evenly, so that a batch without them costs an empty launch.
//   choose: one block a row (sample_choose.cu).
// Weights and the order of summation are those of core/engine/sampler.cpp, so the same draw gives the same token. Every
// atomic operation is on integers, so no result depends on the order of threads.
#include "kernels/cuda/sample.h"

#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/sample.cuh"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256, kPerThread = kTile / kThreads;

// This thread's values of a tile, -infinity beyond the row: ids begin + 4 * (k * kThreads + thread) + j.
__device__ void load_tile(const float* row, int begin, int size, bool vectors, float (&v)[kPerThread]) {
#pragma unroll
  for (int k = 0; k < kPerThread / 4; ++k) {
    const int id = begin + 4 * (k * kThreads + int(threadIdx.x));
    if (vectors && id < size) {
      const float4 f = *reinterpret_cast<const float4*>(row + id);
      v[4 * k] = f.x, v[4 * k + 1] = f.y, v[4 * k + 2] = f.z, v[4 * k + 3] = f.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) v[4 * k + j] = id + j < size ? row[id + j] : -INFINITY;
    }
  }
}

// The best token of a tile; 0 when a value is NaN or +infinity.
__device__ uint64 best_of(const float (&v)[kPerThread], int begin, uint64 (&of_warps)[kThreads / 32]) {
  float max = -INFINITY;
  int id = begin + 4 * int(threadIdx.x);  // of the first maximum of this thread, whose ids ascend
  bool bad = false;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    bad |= !(v[i] <= 3.402823466e38f);
    if (v[i] > max) {
      max = v[i];
      id = begin + 4 * (i / 4 * kThreads + int(threadIdx.x)) + i % 4;
    }
  }
  const uint64 mine = packed(max, id);
  const uint32_t key = __reduce_max_sync(0xffffffffu, uint32_t(mine >> 32));
  const uint32_t low = __reduce_max_sync(0xffffffffu, uint32_t(mine >> 32) == key ? uint32_t(mine) : 0u);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = uint64{key} << 32 | low;
  if (__syncthreads_or(bad)) return 0;
  uint64 best = 0;
  for (const uint64 w : of_warps) best = w > best ? w : best;
  return best;
}

// The first of `adjustments` (sorted by id) whose id is `id` or more; asked by a whole block.
__device__ int first_adjustment(const LogitAdjustment* adjustments, int begin, int end, int id) {
  while (begin < end) {
    const int step = (end - begin + kThreads - 1) / kThreads, i = begin + int(threadIdx.x) * step;
    const int below = __syncthreads_count(i < end && adjustments[i].token_id < id);
    if (below == 0) return begin;
    // The last probe that is below is at begin + (below - 1) * step; the answer lies behind it.
    end = min(end, begin + below * step);
    begin += (below - 1) * step + 1;
  }
  return begin;
}

// sampler.cpp: process(), penalize().
__device__ float adjusted_logit(float x, const LogitAdjustment& a, const SamplingRow& row) {
  x = __fadd_rn(x, a.bias);
  if (!a.seen) return x;
  x = x > 0.0f ? __fdiv_rn(x, row.repetition_penalty) : __fmul_rn(x, row.repetition_penalty);
  if (a.count == 0) return x;
  return __fsub_rn(__fsub_rn(x, __fmul_rn(row.frequency_penalty, float(a.count))), row.presence_penalty);
}

// Grid [tiles, rows].
__global__ void __launch_bounds__(kThreads, 6)
    sample_scan(const float* logits, const SamplingRow* rows, const LogitAdjustment* adjustments, SampleScratch s,
                SampleShape shape, bool vectors) {
  __shared__ uint64 of_warps[kThreads / 32];
  const int tile = int(blockIdx.x), index = int(blockIdx.y), begin = tile * kTile;
  const SamplingRow& row = rows[index];
  const float* raw = logits + int64_t{index} * shape.vocab_size;
  float v[kPerThread];
  load_tile(raw, begin, shape.vocab_size, vectors, v);
  const uint64 raw_best = best_of(v, begin, of_warps);
  uint64 best = raw_best;
  if (row.adjust_begin < row.adjust_end) {
    float* out = s.adjusted + int64_t{index} * shape.vocab_size;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int id = begin + 4 * (i / 4 * kThreads + int(threadIdx.x)) + i % 4;
      if (id < shape.vocab_size) out[id] = v[i];
    }
    __syncthreads();
    const int first = first_adjustment(adjustments, row.adjust_begin, row.adjust_end, begin);
    const int last = first_adjustment(adjustments, first, row.adjust_end, begin + kTile);
    for (int i = first + int(threadIdx.x); i < last; i += kThreads) {
      const LogitAdjustment a = adjustments[i];
      if (a.token_id < shape.vocab_size) out[a.token_id] = adjusted_logit(raw[a.token_id], a, row);
    }
    __syncthreads();
    load_tile(out, begin, shape.vocab_size, false, v);
    best = best_of(v, begin, of_warps);
  }
  const bool passes = draws(row) || row.num_logprobs >= 0;
  if (threadIdx.x == 0) {
    s.raw_best[int64_t{index} * shape.tiles + tile] = raw_best;
    s.best[int64_t{index} * shape.tiles + tile] = best;
    if (tile == 0) s.passes[index] = passes;
  }
  if (!passes) return;
  for (int b = tile * kThreads + int(threadIdx.x); b < kBins; b += shape.tiles * kThreads)
    s.bins[int64_t{index} * kBins + b] = s.raw_bins[int64_t{index} * kBins + b] = 0;
}

// The tree of softmax.cpp over the 16 lanes of half a warp.
__device__ double half_warp_tree(double v) {
  for (int width = 8; width > 0; width /= 2) v += __shfl_xor_sync(0xffffffffu, v, width);
  return v;
}

// One tile of one row. Half warp h sums block h of the tile, lane l its ids l, l + 16, ...
struct TileSums {
  const SampleScratch& s;
  const SampleShape& shape;
  uint32_t (&low)[kBins];  // of each bin, in shared memory; all zero between two uses
  uint32_t (&high)[kBins];

  __device__ void load(const float* row, int tile, float (&v)[16]) const {
    const int begin = tile * kTile + int(threadIdx.x / 16) * kSumBlock + int(threadIdx.x % 16);
#pragma unroll
    for (int i = 0; i < 16; ++i) v[i] = begin + 16 * i < shape.vocab_size ? row[begin + 16 * i] : -INFINITY;
  }
  __device__ void write_sum(double* sums, int index, int tile, double sum) const {
    sum = half_warp_tree(sum);
    const int block = tile * (kTile / kSumBlock) + int(threadIdx.x / 16);
    if (threadIdx.x % 16 == 0 && block < shape.blocks) sums[int64_t{index} * shape.blocks + block] = sum;
  }
  __device__ void add(int bin, uint64 n) const {
    const uint32_t l = uint32_t(n), h = uint32_t(n >> 32);
    const uint32_t carry = l && atomicAdd(&low[bin], l) > ~l;
    if (h + carry) atomicAdd(&high[bin], h + carry);
  }
  __device__ void flush(uint64* bins, int index) const {
    __syncthreads();
    for (int b = int(threadIdx.x); b < kBins; b += kThreads) {
      const uint64 n = uint64{high[b]} << 32 | low[b];
      if (n) atomicAdd(&bins[int64_t{index} * kBins + b], n);
      low[b] = high[b] = 0;
    }
    __syncthreads();
  }

  // Weights, their sums, their bins.
  __device__ void weigh(const float* x, const SamplingRow& row, float max, int index, int tile) const {
    const Weights weigh = weights_of(row, max);
    const float per_logit = bins_per_logit(weigh.scale);
    const bool top_k = has_top_k(row, shape.vocab_size), binned = best_first(row, shape.vocab_size);
    const float floor = float(least_floor(row, shape.vocab_size));
    float v[16];
    load(x, tile, v);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float w = weigh(v[i]);
      sum += double(w);
      if (binned && w > 0.0f && w >= floor) add(bin_of(v[i], max, per_logit), top_k ? 1 : uint64(w * kMassUnit));
    }
    write_sum(s.sums, index, tile, sum);
    if (binned) flush(s.bins, index);
  }

  // The same of the raw row, for logprobs.
  __device__ void weigh_raw(const float* x, float max, int num_top, int index, int tile) const {
    float v[16];
    load(x, tile, v);
    const int begin = tile * kTile + int(threadIdx.x / 16) * kSumBlock + int(threadIdx.x % 16);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      sum += double(exp_nonpositive(__fsub_rn(v[i], max)));
      if (num_top > 0 && begin + 16 * i < shape.vocab_size) add(bin_of(v[i], max, kBinsPerUnit), 1);
    }
    write_sum(s.raw_sums, index, tile, sum);
    if (num_top > 0) flush(s.raw_bins, index);
  }
};

__global__ void __launch_bounds__(kThreads)
    sample_sums(const float* logits, const SamplingRow* rows, SampleScratch s, SampleShape shape) {
  __shared__ uint32_t low[kBins], high[kBins];
  __shared__ uint16_t list[kMaxSampledRows];
  __shared__ int list_size;
  if (threadIdx.x < 32) {  // the rows that need this pass
    int n = 0;
    for (int r = int(threadIdx.x); r - int(threadIdx.x) < shape.num_rows; r += 32) {
      const uint32_t here = __ballot_sync(0xffffffffu, r < shape.num_rows && s.passes[r]);
      if (here >> (threadIdx.x) & 1) list[n + __popc(here & ((1u << threadIdx.x) - 1))] = uint16_t(r);
      n += __popc(here);
    }
    if (threadIdx.x == 0) list_size = n;
  }
  __syncthreads();
  if (list_size == 0) return;
  for (int b = int(threadIdx.x); b < kBins; b += kThreads) low[b] = high[b] = 0;
  __syncthreads();
  const TileSums sums{s, shape, low, high};
  for (int item = int(blockIdx.x); item < list_size * shape.tiles; item += int(gridDim.x)) {
    const int index = list[item / shape.tiles], tile = item % shape.tiles;
    const SamplingRow& row = rows[index];
    const RowState state = row_state(s, index, shape.tiles);
    if (state.status != SampledStatus::kOk) continue;
    if (draws(row))
      sums.weigh(drawn_row(s, logits, row, index, shape.vocab_size), row, packed_logit(state.best), index, tile);
    if (row.num_logprobs >= 0)
      sums.weigh_raw(logits + int64_t{index} * shape.vocab_size, packed_logit(state.raw_best), row.num_logprobs, index,
                     tile);
  }
}

}  // namespace kernel

namespace {

using kernel::SampleScratch;
using kernel::SampleShape;

SampleShape shape_of(int64_t num_rows, int64_t vocab_size) {
  CHECK(num_rows >= 0 && num_rows <= kMaxSampledRows && vocab_size > 0 && vocab_size <= kMaxSampledVocab,
        "sample_rows of [{}, {}]; at most [{}, {}]", num_rows, vocab_size, kMaxSampledRows, kMaxSampledVocab);
  return {int(num_rows), int(vocab_size), int((vocab_size + kernel::kTile - 1) / kernel::kTile),
          int((vocab_size + kernel::kSumBlock - 1) / kernel::kSumBlock)};
}

// Lays the arrays out behind `memory`, which may be null, and tells where they end.
SampleScratch scratch_at(std::byte* memory, const SampleShape& shape, int64_t& num_bytes) {
  int64_t end = 0;
  const auto take = [&]<class T>(T*& array, int64_t row_size) {
    array = reinterpret_cast<T*>(memory + end);
    end += (shape.num_rows * row_size * int64_t(sizeof(T)) + 255) / 256 * 256;
  };
  SampleScratch s;
  take(s.raw_best, shape.tiles);
  take(s.best, shape.tiles);
  take(s.sums, shape.blocks);
  take(s.raw_sums, shape.blocks);
  take(s.bins, kernel::kBins);
  take(s.raw_bins, kernel::kBins);
  take(s.passes, 1);
  take(s.adjusted, shape.vocab_size);
  num_bytes = end;
  return s;
}

}  // namespace

int64_t sample_scratch_bytes(int64_t max_rows, int64_t vocab_size) {
  int64_t num_bytes = 0;
  scratch_at(nullptr, shape_of(max_rows, vocab_size), num_bytes);
  return num_bytes;
}

void sample_rows(const SampleRowsArgs& a, std::byte* scratch, Stream stream) {
  const SampleShape shape = shape_of(a.logits.dim(0), a.logits.dim(1));
  CHECK(a.rows.size() >= shape.num_rows && a.out.size() >= shape.num_rows,
        "sample_rows: {} rows, {} parameters, {} out", shape.num_rows, a.rows.size(), a.out.size());
  CHECK(!a.next_token_ids || a.next_token_ids.size() >= shape.num_rows, "sample_rows: {} rows, {} next tokens",
        shape.num_rows, a.next_token_ids.size());
  if (shape.num_rows == 0) return;
  int64_t num_bytes = 0;
  const SampleScratch s = scratch_at(scratch, shape, num_bytes);
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  const bool vectors = shape.vocab_size % 4 == 0 && reinterpret_cast<uintptr_t>(a.logits.data) % 16 == 0;
  kernel::sample_scan<<<dim3(unsigned(shape.tiles), unsigned(shape.num_rows)), kernel::kThreads, 0, cuda_stream>>>(
      a.logits.data, a.rows.data, a.adjustments.data, s, shape, vectors);
  CUDA_CHECK(cudaGetLastError());
  constexpr int kSumBlocks = 792;  // six a multiprocessor of an H200; any number is right
  kernel::
      sample_sums<<<unsigned(std::min(shape.tiles * shape.num_rows, kSumBlocks)), kernel::kThreads, 0, cuda_stream>>>(
          a.logits.data, a.rows.data, s, shape);
  CUDA_CHECK(cudaGetLastError());
  launch_sample_choose(a, s, shape, stream);
}

}  // namespace moectl::cuda
