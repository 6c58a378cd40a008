// The two factors of a gated feed-forward's hidden value (Activation in kernels/ops.h): of the gate's sum and of the up
// projection's.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda::kernel {

__device__ inline float gate_activation(const Activation& a, float g) {
  if (a.kind == Activation::Kind::kSwiGlu) return g / (1.0f + expf(-g));
  g = fminf(g, a.limit);
  return g / (1.0f + expf(-a.alpha * g));
}

__device__ inline float up_activation(const Activation& a, float u) {
  if (a.kind == Activation::Kind::kSwiGlu) return u;
  return fmaxf(fminf(u, a.limit), -a.limit) + 1.0f;
}

}  // namespace moectl::cuda::kernel
