// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2,
// 3", SC11). A number is a pure function of (seed, output index, draw): no state, no order of calls, so a sampled
// stream continues identically after a preemption, on another rank, in another process or on a GPU.
#pragma once

#include <array>
#include <cstdint>

namespace moectl {

// The block function: 128 random bits for one counter under one key.
std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Draw number `draw` for output token `output_index`: key = seed, counter = (draw, 0, index low, index high).
// 53 bits of words 1 and 0, in [0, 1): for inverse-CDF sampling, where 24 bits are too coarse for rare tokens.
double uniform_double(uint64_t seed, uint64_t output_index, uint32_t draw);

}  // namespace moectl
