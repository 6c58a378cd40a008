// How a matrix product of fp8_gemm and bf16_gemm is tiled. The launchers choose by shape and device; benchmarks and
// tests may try other tilings. Owns nothing.
#pragma once

#include <cstdint>

namespace moectl::cuda {

struct GemmConfig {
  bool swap = false;         // weight rows on wgmma's M axis and tokens on N: for few rows
  int sub = 1;               // the tile's M axis is 128 * sub (two warpgroups of 64 * sub)
  int tile_n = 128;          // the tile's N axis
  int multicast = 1;         // blocks of a cluster that load the same tokens once and take neighboring weight tiles
  int split = 1;             // split-K: blocks of a cluster that divide k of one tile; summed in the order of k
  int stages = 0;            // shared memory stages; 0: as many as fit
  bool early_start = false;  // PDL: blocks may start, and read weights, while the kernels before this one end
  int group_m = 16;          // token tiles that use a weight tile before the next one is read
};

constexpr int64_t kMaxGemmExperts = 512;

// What the choice depends on. rows: of all experts together, at most. num_kb: k-blocks, of 128 bytes of k each.
struct GemmSize {
  int64_t rows = 0, n = 0, num_kb = 0, num_experts = 1;
  int64_t num_multiprocessors = 0;  // of the device
  bool grouped = false, gated = false, deterministic = false;
};
GemmConfig choose_gemm_config(const GemmSize& size);

}  // namespace moectl::cuda
