// What the kernels of sample.cu and sample_choose.cu share: the numbers of one row between launches, weights and order
// of tokens as core/engine/softmax.cpp and sampler.cpp define them (same operations, each rounded once), block sums.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda::kernel {

constexpr int kTile = 4096;     // ids of a thread block in the passes over a row
constexpr int kSumBlock = 256;  // ids a partial sum: sampler.cpp's kDrawBlock
constexpr int kMaxTiles = 64;   // 2^18 ids
constexpr int kMaxBlocks = 1024;
// Tokens by their distance from the best one: bin b holds b / 32 .. (b + 1) / 32 logits (times 1 / temperature, where
// that is more than 1). The last bin holds the rest.
constexpr int kBins = 2816;
constexpr float kBinsPerUnit = 32.0f;
constexpr float kMassUnit = 0x1p40f;  // weights in bins: whole multiples of 2^-40

using uint64 = unsigned long long;

// Scratch, by row and tile, block or bin.
struct SampleScratch {
  uint64* raw_best;  // [rows, tiles] packed; 0: a value is NaN or infinite
  uint64* best;      // [rows, tiles] packed, after adjustments; 0: likewise
  double* sums;      // [rows, blocks] of weights
  double* raw_sums;  // [rows, blocks] of e^(logit - best logit)
  uint64* bins;      // [rows, kBins] number of tokens (top_k) or their mass (top_p alone)
  uint64* raw_bins;  // [rows, kBins] number of tokens, of the raw row
  uint8_t* passes;   // [rows] 1: the best token alone is not enough
  float* adjusted;   // [rows, vocab_size] logits, where there are adjustments
};

struct SampleShape {
  int num_rows, vocab_size, tiles, blocks;
};

// ------------------------------------------------------------------------------------------------ order and weights

// (logit, id) as a number that grows towards the better token: the higher logit, then the lower id. Never 0 for a
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

// softmax.cpp's, operation by operation.
__device__ inline float exp_nonpositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float n = __fsub_rn(__fadd_rn(__fmul_rn(clamped, 1.44269504088896341f), 12582912.0f), 12582912.0f);
  const float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
  p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
  const float power = __uint_as_float(uint32_t(int32_t(n) + 127) << 23);
  return x < -87.0f ? 0.0f : __fmul_rn(p, power);
}

// The distribution of a row with a temperature, up to min_p.
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

// A function of the logit that never falls as the logit falls.
__device__ inline int bin_of(float logit, float max, float bins_per_logit) {
  return int(fminf((max - logit) * bins_per_logit, float(kBins - 1)));
}
__device__ inline float bins_per_logit(float scale) {
  return kBinsPerUnit * fmaxf(scale, 1.0f);
}

__device__ inline bool draws(const SamplingRow& row) {
  return row.temperature >= kGreedyBelow;
}
__device__ inline bool has_top_k(const SamplingRow& row, int vocab_size) {
  return row.top_k > 0 && row.top_k < vocab_size;
}
__device__ inline bool best_first(const SamplingRow& row, int vocab_size) {
  return draws(row) && (has_top_k(row, vocab_size) || row.top_p < 1.0f);
}
// Below this weight a token is out of top_p's reach; never more than sampler.cpp's `floor`, as the whole is 1 or more.
__device__ inline double least_floor(const SamplingRow& row, int vocab_size) {
  return has_top_k(row, vocab_size) ? 0.0 : (1.0 - double(row.top_p)) / double(vocab_size) * 0.999;
}

// ------------------------------------------------------------------------------------------------ rows between
// launches

struct RowState {
  SampledStatus status;
  uint64 raw_best, best;  // packed
};

// Of the tiles' results; by a whole warp, the same in every lane.
__device__ inline RowState row_state(const SampleScratch& s, int row, int tiles) {
  const auto best_of = [&](const uint64* of_tiles) {
    uint64 best = 0, worst = ~uint64{0};
    for (int t = int(threadIdx.x % 32); t < tiles; t += 32) {
      const uint64 v = of_tiles[int64_t{row} * tiles + t];
      best = v > best ? v : best;
      worst = v < worst ? v : worst;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      const uint64 b = __shfl_xor_sync(0xffffffffu, best, offset), w = __shfl_xor_sync(0xffffffffu, worst, offset);
      best = b > best ? b : best;
      worst = w < worst ? w : worst;
    }
    return worst == 0 || packed_logit(best) == -INFINITY ? 0 : best;
  };
  RowState r;
  r.raw_best = best_of(s.raw_best);
  r.best = best_of(s.best);
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

// The last launch (sample_choose.cu): one thread block a row.
void launch_sample_choose(const SampleRowsArgs& args, const kernel::SampleScratch& scratch,
                          const kernel::SampleShape& shape, Stream stream);

}  // namespace moectl::cuda
