// Row reductions of the sampler, in one fixed order of summation: 16 lanes by index modulo 16, then a tree over the
// lanes. The result is a function of the row alone, on any thread and with any vector width the compiler picks.
#pragma once

#include <cstdint>
#include <span>

namespace moectl {

struct RowStats {
  float max = 0.0f;
  int32_t argmax = -1;  // lowest index of the maximum; -1: every value is -inf
  bool valid = true;    // no NaN and no +inf
};
RowStats row_stats(std::span<const float> x);

// e^x for x <= 0, within 2 ulp; 0 below -87.
float exp_nonpositive(float x);

// out[i] = e^((x[i] - max) * scale), the weights of a softmax.
void softmax_weights(std::span<const float> x, float max, float scale, std::span<float> out);
double lane_sum(std::span<const float> x);

// log(sum of e^x[i]) of a row whose maximum is `max`.
double log_sum_exp(std::span<const float> x, float max);

}  // namespace moectl
