// What the tests of the attention kernels share: tolerances, and how a cache goes to the device in its dtype.
#pragma once

#include <cuda_bf16.h>

#include <cmath>

#include "kernels/cuda/attention/attention.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {

// Of softmax(score) v for one output: the weighted sum of `values`, and how far it may be off when queries and weights
// are rounded to a dtype of roundoff `u` (0: kept in f32). score_error[p]: of score p by f32 arithmetic;
// score_spread[p]: sqrt(sum of (q k)^2) scale. Rounding errors of random data are independent: they add as roots of
// sums of squares, and 6 standard deviations are allowed (tests/harness/compare.h).
inline Bounded attention_output(const std::vector<double>& weight, double score_error,
                                const std::vector<double>& score_spread, const std::vector<double>& value, double u) {
  double result = 0, magnitude = 0, largest = 0, rounding = 0;
  for (size_t p = 0; p < weight.size(); ++p) {
    result += weight[p] * value[p];
    magnitude += std::abs(weight[p] * value[p]);
    largest = std::max(largest, std::abs(value[p]));
  }
  for (size_t p = 0; p < weight.size(); ++p) {
    rounding += std::pow(weight[p] * u * score_spread[p] * (std::abs(value[p]) + std::abs(result)), 2);
    rounding += std::pow(weight[p] * u * (std::abs(value[p]) + std::abs(result)), 2);
  }
  const double pages = double(weight.size()) / 64 + 2;
  return rounded(result, (4 * score_error + pages * 4e-7) * largest + 6 * std::sqrt(rounding) +
                             dot_tolerance(int64_t(weight.size()), magnitude) * 2);
}

// A cache on the device, as f32 or bf16. `values` are rounded to the dtype first, so that references see the same.
struct DeviceCache {
  DeviceCache(std::vector<float>& values, DType dtype)
      : dtype_(dtype),
        f32_(dtype == DType::kF32 ? int64_t(values.size()) : 1),
        bf16_(dtype == DType::kBF16 ? int64_t(values.size()) : 1) {
    if (dtype == DType::kF32) {
      f32_.upload(values);
      return;
    }
    std::vector<uint16_t> bits;
    for (float& v : values) {
      bits.push_back(f32_to_bf16(v));
      v = bf16_to_f32(bits.back());
    }
    bf16_.upload(bits);
  }
  KvView view(const std::array<int64_t, 4>& shape) const {
    return {dtype_ == DType::kF32 ? static_cast<void*>(f32_.data()) : bf16_.data(), dtype_, shape};
  }

 private:
  DType dtype_;
  DeviceArray<float> f32_;
  DeviceArray<uint16_t> bf16_;
};

// Scratch with its counters at zero, as CudaOps keeps it.
struct DeviceScratch {
  DeviceScratch(int64_t tokens, int64_t heads, int64_t value_size, bool deterministic)
      : data(cuda::attention_scratch_bytes(tokens, heads, value_size) + 1),
        counters(std::vector<int32_t>(size_t(cuda::attention_counters(tokens, heads)), 0)) {
    scratch = {data.data(), data.size() - 1, counters.data(), counters.size(), deterministic, false};
  }
  bool counters_are_zero() const {
    for (int32_t c : counters.host())
      if (c != 0) return false;
    return true;
  }
  DeviceArray<uint8_t> data;
  DeviceArray<int32_t> counters;
  cuda::AttentionScratch scratch;
};

}  // namespace moectl::test
