// Sampling: rows of logits to tokens, in three launches whose shape depends on the number of rows and the vocabulary
// size alone, as the parameters of rows are on the device.
//   scan:   reads the logits once, one warp per chunk: validity and the best token, before and after adjustments (an
//           adjusted row is written to scratch). With temperature 0 and no logprobs a row needs nothing else.
//   sums:   for the other rows: partial sums of weights, and a histogram of tokens by their distance from the best one,
//           by which the next launch finds the few tokens that top_k, top_p and logprobs need. These rows are
//           distributed evenly over blocks, so that a batch without them costs an empty launch. Bound by arithmetic:
//           some 35 instructions per logit.
//   choose: one thread block per row (sample_choose.cu).
// Weights and the order of summation are those of core/engine/sampler.cpp, so the same draw gives the same token. Every
// atomic operation is on integers, so no result depends on the order of threads.
#include "kernels/cuda/sample/sample.h"

#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/runtime/check.h"
#include "kernels/cuda/runtime/device.h"
#include "kernels/cuda/sample/sample.cuh"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTile = kThreads / 16 * kSumBlock;  // ids per thread block at a time: half a warp per block of the sum

// ------------------------------------------------------------------------------------------------ scan

// The best token of a chunk; 0 when a value is NaN or +infinity.
__device__ uint64 best_of(const float* row, int begin, int size, bool vectors) {
  float v[kPerLane];
  load_chunk(row, begin, size, vectors, v);
  float max = -INFINITY;
  int id = id_of(begin, 0);  // of this lane's first maximum, as its ids ascend
  bool bad = false;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    bad |= !(v[i] <= 3.402823466e38f);
    if (v[i] > max) {
      max = v[i];
      id = id_of(begin, i);
    }
  }
  if (__any_sync(0xffffffffu, bad)) return 0;
  const uint64 best = packed(max, id);
  const uint32_t key = __reduce_max_sync(0xffffffffu, uint32_t(best >> 32));
  const uint32_t low = __reduce_max_sync(0xffffffffu, uint32_t(best >> 32) == key ? uint32_t(best) : 0u);
  return uint64{key} << 32 | low;
}

// The first of `adjustments` (sorted by id) whose id is `id` or more; by a whole warp.
__device__ int first_adjustment(const LogitAdjustment* adjustments, int begin, int end, int id) {
  while (begin < end) {
    const int step = (end - begin + 31) / 32, i = begin + lane() * step;
    const int below = __popc(__ballot_sync(0xffffffffu, i < end && adjustments[i].token_id < id));
    if (below == 0) return begin;
    // The last probe below is at begin + (below - 1) * step; the answer is after it.
    end = min(end, begin + below * step);
    begin += (below - 1) * step + 1;
  }
  return begin;
}

// process() and penalize() of sampler.cpp.
__device__ float adjusted_logit(float x, const LogitAdjustment& a, const SamplingRow& row) {
  x = __fadd_rn(x, a.bias);
  if (!a.seen) return x;
  x = x > 0.0f ? __fdiv_rn(x, row.repetition_penalty) : __fmul_rn(x, row.repetition_penalty);
  if (a.count == 0) return x;
  return __fsub_rn(__fsub_rn(x, __fmul_rn(row.frequency_penalty, float(a.count))), row.presence_penalty);
}

// Writes the adjusted chunk and returns its best token. `pending`: the last output token, which the adjustments do not
// count yet; or -1.
__device__ __noinline__ uint64 adjust(const float* raw, const SamplingRow& row, const LogitAdjustment* adjustments,
                                      int pending, float* out, int begin, int size) {
  for (int id = begin + lane(); id < min(begin + kChunk, size); id += 32) out[id] = raw[id];
  __syncwarp();
  const int first = first_adjustment(adjustments, row.adjust_begin, row.adjust_end, begin);
  const int last = first_adjustment(adjustments, first, row.adjust_end, min(begin + kChunk, size));
  for (int i = first + lane(); i < last; i += 32) {
    const LogitAdjustment a = adjustments[i];
    out[a.token_id] = adjusted_logit(raw[a.token_id], a, row);
  }
  __syncwarp();
  if (pending >= begin && pending < min(begin + kChunk, size)) {
    const int at = first_adjustment(adjustments, first, last, pending);
    if (lane() == 0) {
      LogitAdjustment a{.token_id = pending};
      if (at < last && adjustments[at].token_id == pending) a = adjustments[at];
      a.seen = 1;
      ++a.count;
      out[pending] = adjusted_logit(raw[pending], a, row);
    }
    __syncwarp();
  }
  return best_of(out, begin, size, false);
}

// Grid [chunks / kWarps, rows].
__global__ void __launch_bounds__(kThreads, 8)
    sample_scan(const float* logits, const SamplingRow* rows, const LogitAdjustment* adjustments,
                const int32_t* sampled, int num_sampled, SampleScratch s, SampleShape shape, bool vectors) {
  const int chunk = int(blockIdx.x) * kWarps + int(threadIdx.x / 32), index = int(blockIdx.y), begin = chunk * kChunk;
  if (chunk >= shape.chunks) return;
  const float* raw = logits + int64_t{index} * shape.vocab_size;
  const uint64 raw_best = best_of(raw, begin, shape.vocab_size, vectors);
  const SamplingRow& row = rows[index];
  const int64_t slot = int64_t{index} * shape.chunks + chunk;
  if (lane() == 0) s.raw_best[slot] = raw_best;
  if (row.adjust_begin < row.adjust_end) {
    const int pending = row.pending_row >= 0 && row.pending_row < num_sampled ? sampled[row.pending_row] : -1;
    const uint64 best =
        adjust(raw, row, adjustments, pending, s.adjusted + int64_t{index} * shape.vocab_size, begin, shape.vocab_size);
    if (lane() == 0) s.best[slot] = best;
  }
  const bool passes = draws(row) || row.num_logprobs >= 0;
  if (chunk == 0 && lane() == 0) s.passes[index] = passes;
  if (!passes) return;
  for (int b = chunk * 32 + lane(); b < kBins; b += shape.chunks * 32)
    s.bins[int64_t{index} * kBins + b] = s.raw_bins[int64_t{index} * kBins + b] = 0;
}

// ------------------------------------------------------------------------------------------------ sums

struct BinShared {
  uint32_t low[kBins], high[kBins];  // a bin's number of tokens, or their probability mass
  uint32_t raw[kBins];               // number of tokens
};

// The summation tree of softmax.cpp over the 16 lanes of half a warp.
__device__ double half_warp_tree(double v) {
  for (int width = 8; width > 0; width /= 2) v += __shfl_xor_sync(0xffffffffu, v, width);
  return v;
}

// One row, tile by tile. Half warp h sums block h of a tile, lane l of it the ids l, l + 16, ...
struct RowSums {
  int index;
  bool ok, draws, logprobs, binned, by_count, raw_binned;
  bool one_sum;  // weights and logprobs have the same sums
  const float *raw, *x;
  float raw_max, floor;
  Weights weigh = {};

  __device__ void begin(const SampleScratch& s, const SampleShape& shape, const float* logits, const SamplingRow& row,
                        int i) {
    index = i;
    const RowState state = row_state(s, row, index, shape.chunks);
    ok = state.status == SampledStatus::kOk;
    draws = kernel::draws(row);
    logprobs = row.num_logprobs >= 0;
    binned = ok && best_first(row, shape.vocab_size);
    by_count = has_top_k(row, shape.vocab_size);
    raw_binned = ok && row.num_logprobs > 0;
    raw = logits + int64_t{index} * shape.vocab_size;
    x = drawn_row(s, logits, row, index, shape.vocab_size);
    raw_max = packed_logit(state.raw_best);
    if (draws) weigh = weights_of(row, packed_logit(state.best));
    floor = float(least_floor(row, shape.vocab_size));
    one_sum = draws && logprobs && x == raw && weigh.scale == 1.0f && weigh.min_p == 0.0f;
  }

  __device__ static int first_id(int tile) {
    return tile * kTile + int(threadIdx.x / 16) * kSumBlock + int(threadIdx.x % 16);
  }
  __device__ static void load(const float* row, int tile, int size, float (&v)[16]) {
    const int begin = first_id(tile);
#pragma unroll
    for (int i = 0; i < 16; ++i) v[i] = begin + 16 * i < size ? row[begin + 16 * i] : -INFINITY;
  }
  __device__ void write_sum(double* sums, int tile, int blocks, double sum) const {
    const int block = tile * (kTile / kSumBlock) + int(threadIdx.x / 16);
    if (threadIdx.x % 16 == 0 && block < blocks) sums[int64_t{index} * blocks + block] = sum;
  }

  __device__ void add(BinShared& bins, int bin, float w) const {
    if (by_count) {
      atomicAdd(&bins.low[bin], 1u);
      return;
    }
    const uint64 mass = uint64(w * kMassUnit);
    const uint32_t low = uint32_t(mass), high = uint32_t(mass >> 32);
    const uint32_t carry = low && atomicAdd(&bins.low[bin], low) > ~low;
    if (high + carry) atomicAdd(&bins.high[bin], high + carry);
  }

  __device__ void add_tile(const SampleScratch& s, const SampleShape& shape, BinShared& bins, int tile) const {
    if (!ok) return;
    float v[16];
    if (draws) {
      load(x, tile, shape.vocab_size, v);
      double sum = 0.0;
#pragma unroll
      for (int i = 0; i < 16; i += 8) {
        float w[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) sum += double(w[j] = weigh(v[i + j]));
        if (!binned) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (w[j] > 0.0f && w[j] >= floor) add(bins, binning_of(weigh)(v[i + j]), w[j]);
      }
      sum = half_warp_tree(sum);
      write_sum(s.sums, tile, shape.blocks, sum);
      if (one_sum) write_sum(s.raw_sums, tile, shape.blocks, sum);
    }
    if (!logprobs || (one_sum && !raw_binned)) return;
    load(raw, tile, shape.vocab_size, v);
    if (!one_sum) {
      double sum = 0.0;
#pragma unroll
      for (int i = 0; i < 16; ++i) sum += double(exp_nonpositive(__fsub_rn(v[i], raw_max)));
      write_sum(s.raw_sums, tile, shape.blocks, half_warp_tree(sum));
    }
    if (!raw_binned) return;
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (first_id(tile) + 16 * i < shape.vocab_size) atomicAdd(&bins.raw[raw_binning(raw_max)(v[i])], 1u);
  }

  // Adds this block's bins to those of the row, and clears them.
  __device__ void end(const SampleScratch& s, BinShared& bins) const {
    if (!binned && !raw_binned) return;
    __syncthreads();
    for (int b = int(threadIdx.x); b < kBins; b += kThreads) {
      const uint64 n = uint64{bins.high[b]} << 32 | bins.low[b];
      if (n) atomicAdd(&s.bins[int64_t{index} * kBins + b], n);
      if (bins.raw[b]) atomicAdd(&s.raw_bins[int64_t{index} * kBins + b], uint64{bins.raw[b]});
      bins.low[b] = bins.high[b] = bins.raw[b] = 0;
    }
    __syncthreads();
  }
};

constexpr int kSumBlocksPerMultiprocessor = 5;

__global__ void __launch_bounds__(kThreads, kSumBlocksPerMultiprocessor)
    sample_sums(const float* logits, const SamplingRow* rows, SampleScratch s, SampleShape shape) {
  __shared__ BinShared bins;
  __shared__ uint8_t list[kMaxRows];
  __shared__ int list_size;
  if (threadIdx.x < 32) {  // the rows that need this pass
    int n = 0;
    for (int first = 0; first < shape.num_rows; first += 32) {
      const int r = first + lane();
      const uint32_t here = __ballot_sync(0xffffffffu, r < shape.num_rows && s.passes[r]);
      if (here >> lane() & 1) list[n + __popc(here & ((1u << lane()) - 1))] = uint8_t(r);
      n += __popc(here);
    }
    if (lane() == 0) list_size = n;
  }
  __syncthreads();
  const int tiles = (shape.vocab_size + kTile - 1) / kTile;
  const int64_t items = int64_t{list_size} * tiles;
  const int begin = int(items * blockIdx.x / gridDim.x), end = int(items * (blockIdx.x + 1) / gridDim.x);
  if (begin == end) return;
  for (int b = int(threadIdx.x); b < kBins; b += kThreads) bins.low[b] = bins.high[b] = bins.raw[b] = 0;
  __syncthreads();
  RowSums row;
  for (int item = begin; item < end; ++item) {
    const int index = list[item / tiles], tile = item % tiles;
    if (item == begin || tile == 0) {
      if (item > begin) row.end(s, bins);
      row.begin(s, shape, logits, rows[index], index);
    }
    row.add_tile(s, shape, bins, tile);
  }
  row.end(s, bins);
}

}  // namespace kernel

namespace {

using kernel::SampleScratch;
using kernel::SampleShape;

SampleShape shape_of(int64_t num_rows, int64_t vocab_size) {
  CHECK(num_rows >= 0 && vocab_size > 0 && vocab_size <= kMaxSampledVocab,
        "sample_rows of [{}, {}]; a vocabulary has at most {} tokens", num_rows, vocab_size, kMaxSampledVocab);
  return {int(std::min<int64_t>(num_rows, kernel::kMaxRows)), int(vocab_size),
          int((vocab_size + kernel::kChunk - 1) / kernel::kChunk),
          int((vocab_size + kernel::kSumBlock - 1) / kernel::kSumBlock)};
}

// Lays the arrays out in `memory`, which may be null; num_bytes: their total size.
SampleScratch scratch_at(std::byte* memory, const SampleShape& shape, int64_t& num_bytes) {
  int64_t end = 0;
  const auto take = [&]<class T>(T*& array, int64_t row_size) {
    array = reinterpret_cast<T*>(memory + end);
    end += (shape.num_rows * row_size * int64_t(sizeof(T)) + 255) / 256 * 256;
  };
  SampleScratch s;
  take(s.raw_best, shape.chunks);
  take(s.best, shape.chunks);
  take(s.sums, shape.blocks);
  take(s.raw_sums, shape.blocks);
  take(s.bins, kernel::kBins);
  take(s.raw_bins, kernel::kBins);
  take(s.passes, 1);
  take(s.adjusted, shape.vocab_size);
  num_bytes = end;
  return s;
}

// At most kMaxRows rows.
void sample_batch(const SampleRowsArgs& a, std::byte* scratch, Stream stream) {
  const SampleShape shape = shape_of(a.logits.dim(0), a.logits.dim(1));
  int64_t num_bytes = 0;
  const SampleScratch s = scratch_at(scratch, shape, num_bytes);
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  const bool vectors = shape.vocab_size % 4 == 0 && reinterpret_cast<uintptr_t>(a.logits.data) % 16 == 0;
  const int chunk_blocks = (shape.chunks + kernel::kWarps - 1) / kernel::kWarps;
  kernel::sample_scan<<<dim3(unsigned(chunk_blocks), unsigned(shape.num_rows)), kernel::kThreads, 0, cuda_stream>>>(
      a.logits.data, a.rows.data, a.adjustments.data, a.sampled.data, int(a.sampled.size()), s, shape, vectors);
  CUDA_CHECK(cudaGetLastError());
  const int tiles = (shape.vocab_size + kernel::kTile - 1) / kernel::kTile;
  // Any number of blocks gives the same result; as many as are resident at once are fastest.
  const int sum_blocks = kernel::kSumBlocksPerMultiprocessor * current_device_info().num_multiprocessors;
  kernel::sample_sums<<<unsigned(std::min(tiles * shape.num_rows, sum_blocks)), kernel::kThreads, 0, cuda_stream>>>(
      a.logits.data, a.rows.data, s, shape);
  CUDA_CHECK(cudaGetLastError());
  launch_sample_choose(a, s, shape, stream);
}

}  // namespace

int64_t sample_scratch_bytes(int64_t max_rows, int64_t vocab_size) {
  int64_t num_bytes = 0;
  scratch_at(nullptr, shape_of(max_rows, vocab_size), num_bytes);
  return num_bytes;
}

void sample_rows(const SampleRowsArgs& a, std::byte* scratch, Stream stream) {
  const int64_t num_rows = a.logits.dim(0), vocab_size = a.logits.dim(1);
  shape_of(num_rows, vocab_size);
  CHECK(a.rows.size() >= num_rows && a.out.size() >= num_rows, "sample_rows: {} rows, {} parameters, {} out", num_rows,
        a.rows.size(), a.out.size());
  CHECK(!a.next_token_ids || a.next_token_ids.size() >= num_rows, "sample_rows: {} rows, {} next tokens", num_rows,
        a.next_token_ids.size());
  for (int64_t begin = 0; begin < num_rows; begin += kernel::kMaxRows) {
    const int64_t n = std::min<int64_t>(num_rows - begin, kernel::kMaxRows);
    SampleRowsArgs batch = a;
    batch.logits = View<const float>(a.logits.row(begin), {n, vocab_size});
    batch.rows = View<const SamplingRow>(a.rows.data + begin, {n});
    batch.out = View<SampledRow>(a.out.data + begin, {n});
    if (a.next_token_ids) batch.next_token_ids = View<int32_t>(a.next_token_ids.data + begin, {n});
    sample_batch(batch, scratch, stream);
  }
}

}  // namespace moectl::cuda
