// What the kernels of sample.cu and sample_choose.cu share: a row's state between launches, weights and order of tokens
// as core/engine/softmax.cpp and sampler.cpp define them (same operations, each rounded once), block sums.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace moectl::cuda::kernel {

constexpr int kMaxRows = 256;   // per launch
constexpr int kChunk = 512;     // ids of which one warp finds the best
constexpr int kSumBlock = 256;  // ids per partial sum: kDrawBlock of sampler.cpp
// Histogram of tokens by their distance from the best one: bin b holds distances of b / 32 .. (b + 1) / 32 in the logit
// (times 1 / temperature, where that is more than 1). The last bin holds the rest.
constexpr int kBins = 2816;
constexpr float kBinsPerUnit = 32.0f;
constexpr float kMassUnit = 0x1p40f;  // weights in bins: whole multiples of 2^-40

using uint64 = unsigned long long;

// Scratch, by row and chunk, block or bin.
struct SampleScratch {
  uint64* raw_best;  // [rows, chunks] packed; 0: a value is NaN or infinite
  uint64* best;      // [rows, chunks] the same after adjustments
  double* sums;      // [rows, blocks] of weights
  double* raw_sums;  // [rows, blocks] of e^(logit - best logit)
  uint64* bins;      // [rows, kBins] number of tokens (top_k) or their probability mass (top_p alone)
  uint64* raw_bins;  // [rows, kBins] number of tokens of the raw row
  uint8_t* passes;   // [rows] 1: the row needs more than its best token
  float* adjusted;   // [rows, vocab_size] logits, where there are adjustments
};

struct SampleShape {
  int num_rows, vocab_size, chunks, blocks;
};

// ------------------------------------------------------------------------------------------------ order and weights

// (logit, id) as an integer that is larger for the better token: the higher logit, then the lower id. Never 0 for a
// finite logit or -infinity. Zeros of both signs are equal.
__device__ inline uint64 packed(float logit, int id) {
  const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64{key} << 32 | uint32_t(~id);
}
__device__ inline int packed_id(uint64 p) {
  return int(~uint32_t(p));
}
__device__ inline float key_logit(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
__device__ inline float packed_logit(uint64 p) {
  return key_logit(uint32_t(p >> 32));
}

// As in softmax.cpp, operation by operation.
__device__ inline float exp_nonpositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = __fadd_rn(__fmul_rn(clamped, 1.44269504088896341f), 12582912.0f);
  const float n = __fsub_rn(shifted, 12582912.0f);
  // n * 0.693359375f is exact, as it has few bits.
  const float r = __fsub_rn(__fmaf_rn(n, -0.693359375f, clamped), __fmul_rn(n, -2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
  p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
  const float power = __uint_as_float((__float_as_uint(shifted) + 127u) << 23);  // the low bits of `shifted` are n
  return x < -87.0f ? 0.0f : __fmul_rn(p, power);
}

// Unnormalized probabilities of a row with a temperature, 0 below min_p.
struct Weights {
  float max, scale, min_p;
  __device__ float operator()(float logit) const {
    const float w = exp_nonpositive(__fmul_rn(__fsub_rn(logit, max), scale));
    return w < min_p ? 0.0f : w;
  }
};
__device__ inline Weights weights_of(const SamplingRow& row, float max) {
  return {max, __fdiv_rn(1.0f, row.temperature), row.min_p};
}

// The bin of a logit; it never decreases as the logit decreases.
struct Binning {
  float max, per_logit;
  __device__ int operator()(float logit) const { return int(fminf((max - logit) * per_logit, float(kBins - 1))); }
};
__device__ inline Binning raw_binning(float max) {
  return {max, kBinsPerUnit};
}
__device__ inline Binning binning_of(const Weights& weigh) {
  return {weigh.max, kBinsPerUnit * fmaxf(weigh.scale, 1.0f)};
}

__device__ inline bool draws(const SamplingRow& row) {
  return row.given_id < 0 && row.temperature >= kGreedyBelow;
}
__device__ inline bool has_top_k(const SamplingRow& row, int vocab_size) {
  return row.top_k > 0 && row.top_k < vocab_size;
}
__device__ inline bool best_first(const SamplingRow& row, int vocab_size) {
  return draws(row) && (has_top_k(row, vocab_size) || row.top_p < 1.0f);
}
// Tokens of a lower weight cannot be within top_p; at most the `floor` of sampler.cpp, as the total weight is 1 or
// more.
__device__ inline double least_floor(const SamplingRow& row, int vocab_size) {
  return has_top_k(row, vocab_size) ? 0.0 : (1.0 - double(row.top_p)) / double(vocab_size) * 0.999;
}

// ------------------------------------------------------------------------------------------------ chunks of a row

constexpr int kPerLane = kChunk / 32;

__device__ inline int lane() {
  return int(threadIdx.x % 32);
}
// Value i of this lane, of the chunk from id `begin` on; ids ascend with i.
__device__ inline int id_of(int begin, int i) {
  return begin + 4 * (i / 4 * 32 + lane()) + i % 4;
}
__device__ inline bool has_vectors(const float* row, int size) {
  return size % 4 == 0 && reinterpret_cast<uintptr_t>(row) % 16 == 0;
}
// -infinity beyond the row.
__device__ inline void load_chunk(const float* row, int begin, int size, bool vectors, float (&v)[kPerLane]) {
#pragma unroll
  for (int k = 0; k < kPerLane; k += 4) {
    const int id = id_of(begin, k);
    if (vectors && id < size) {
      const float4 f = *reinterpret_cast<const float4*>(row + id);
      v[k] = f.x, v[k + 1] = f.y, v[k + 2] = f.z, v[k + 3] = f.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) v[k + j] = id + j < size ? row[id + j] : -INFINITY;
    }
  }
}

// ------------------------------------------------------------------------------------------------ between launches

struct RowState {
  SampledStatus status;
  uint64 raw_best, best;  // packed
};

// The best of all chunks; 0 where a value is NaN or infinite, or all are -infinity. By a whole warp.
__device__ inline uint64 best_of_chunks(const uint64* of_chunks, int chunks) {
  uint64 best = 0;
  bool bad = false;
#pragma unroll 4
  for (int c = int(threadIdx.x % 32); c < chunks; c += 32) {
    const uint64 v = of_chunks[c];
    best = v > best ? v : best;
    bad |= v == 0;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const uint64 b = __shfl_xor_sync(0xffffffffu, best, offset);
    best = b > best ? b : best;
  }
  return __any_sync(0xffffffffu, bad) || packed_logit(best) == -INFINITY ? 0 : best;
}

// By a whole warp, the same in every lane.
__device__ inline RowState row_state(const SampleScratch& s, const SamplingRow& row, int index, int chunks) {
  const int64_t begin = int64_t{index} * chunks;
  RowState r;
  r.raw_best = best_of_chunks(s.raw_best + begin, chunks);
  r.best = row.adjust_begin < row.adjust_end ? best_of_chunks(s.best + begin, chunks) : r.raw_best;
  r.status = r.raw_best == 0 ? SampledStatus::kNotFinite
             : r.best == 0   ? SampledStatus::kNothingLeft
                             : SampledStatus::kOk;
  return r;
}

// The row to draw from.
__device__ inline const float* drawn_row(const SampleScratch& s, const float* logits, const SamplingRow& row, int index,
                                         int vocab_size) {
  return (row.adjust_begin < row.adjust_end ? s.adjusted : logits) + int64_t{index} * vocab_size;
}

}  // namespace moectl::cuda::kernel

namespace moectl::cuda {

// The last launch (sample_choose.cu): one thread block per row.
void launch_sample_choose(const SampleRowsArgs& args, const kernel::SampleScratch& scratch,
                          const kernel::SampleShape& shape, Stream stream);

}  // namespace moectl::cuda
