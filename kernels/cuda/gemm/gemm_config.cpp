// The choice of tilings of fp8_gemm and bf16_gemm, as measured on an H200 (docs/performance.md). On devices with
// another number of multiprocessors the measured limits scale with it.
#include "kernels/cuda/gemm/gemm_config.h"

#include <algorithm>
#include <climits>

#include "core/base/check.h"

namespace moectl::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

constexpr int64_t kMeasuredMultiprocessors = 132;  // H200

// What was measured for `count` tiles or clusters on an H200, for this device.
int64_t scaled(const GemmSize& s, int64_t count) {
  return count * s.num_multiprocessors / kMeasuredMultiprocessors;
}

// Split-K where there are few tiles, so that every multiprocessor has work. A cluster lies in one GPC, and GPCs differ
// in size: an H200 runs 66, 39, 30, 22, 17, 15, 15 clusters of 2 to 8 blocks at once. kMostTiles[i]: tiles up to which
// a split of i was fastest.
int split_of(const GemmSize& s, int64_t tiles, int most) {
  constexpr int64_t kMostTiles[] = {0, 132, 66, 33, 25, 18, 14, 12, 12};
  constexpr int64_t kLeastBlocks = 3;  // k-blocks per split
  if (s.deterministic) return 1;
  int split = 1;
  for (int i = 2; i <= most; ++i)
    if (tiles <= scaled(s, kMostTiles[i]) && s.num_kb >= i * kLeastBlocks) split = i;
  return split;
}

// Few rows per expert: the time is that of reading the weights of the experts that have any.
GemmConfig for_few_rows(const GemmSize& s, int64_t rows, int64_t active) {
  GemmConfig c{.early_start = true};
  c.swap = rows <= 64;
  c.tile_n = rows <= 16 ? 16 : rows <= 64 ? 64 : 128;
  c.sub = s.gated ? 2 : 1;
  const int64_t tiles = active * ceil_div(s.n, 128), sms = s.num_multiprocessors, last_wave = tiles % sms;
  c.split = split_of(s, tiles, c.tile_n == 16 && tiles > 8 ? 4 : 8);
  // 15 clusters of eight blocks on an H200.
  if (!c.swap && c.split == 2 && tiles > scaled(s, 40) && tiles <= scaled(s, 60)) c.multicast = 4;
  // Many tiles: whole ones; split-K pays for the last wave alone, where that is much of the whole and k is long.
  const bool short_last_wave =
      tiles > sms && tiles < 4 * sms && last_wave > 0 && last_wave <= sms / 2 && s.num_kb >= 32;
  if (short_last_wave && c.swap && c.tile_n > 16 && !s.deterministic) c.split = 2, c.multicast = 2;
  return c;
}

}  // namespace

GemmConfig choose_gemm_config(const GemmSize& s) {
  CHECK(s.num_multiprocessors > 0, "a tiling for a device of {} multiprocessors", s.num_multiprocessors);
  const int64_t active = std::min(s.num_experts, std::max<int64_t>(s.rows, 1)), rows = ceil_div(s.rows, active);
  if (rows <= 64 || (rows <= 128 && !s.gated)) return for_few_rows(s, rows, active);
  struct Straight {
    int sub, tile_n, cycles;  // cycles per k-block, the epilogue included
  };
  constexpr Straight kStraight[] = {{2, 128, 1390}, {1, 128, 750}, {1, 176, 1155}};
  GemmConfig c;
  int64_t best = INT64_MAX;
  for (const Straight& t : kStraight) {
    if (s.gated && (t.sub != 2 || t.tile_n != 128)) continue;
    const int64_t tokens = 128 * t.sub;
    const int64_t m_tiles = s.grouped ? s.rows / tokens + (active + 1) / 2 : ceil_div(s.rows, tokens);
    const int64_t tiles = m_tiles * ceil_div(s.gated ? 2 * s.n : s.n, t.tile_n);
    const int split = t.sub == 1 && t.tile_n == 128 ? split_of(s, tiles, 4) : 1;
    const int64_t cost = ceil_div(tiles, s.num_multiprocessors) * t.cycles / split;
    if (cost < best) best = cost, c.sub = t.sub, c.tile_n = t.tile_n, c.split = split, c.group_m = t.sub == 2 ? 8 : 16;
  }
  return c;
}

}  // namespace moectl::cuda
