// The choice of tilings of fp8_gemm and bf16_gemm, as measured on an H200 (docs/performance.md).
#include "kernels/cuda/gemm/gemm_config.h"

#include <algorithm>
#include <climits>

namespace moectl::cuda {
namespace {

int64_t round_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Few tiles share k among the blocks of a cluster, so that every multiprocessor has work. A cluster lies in one GPC,
// and GPCs differ in size: somewhat more than so many clusters of a size run at once (66, 39, 30, 22, 17, 15, 15).
int split_of(const GemmSize& s, int64_t tiles, int most) {
  constexpr int64_t kRoom[] = {0, kMultiprocessors, 66, 33, 25, 18, 14, 12, 12};
  constexpr int64_t kLeastBlocks = 3;  // of k, for each
  if (s.deterministic) return 1;
  int split = 1;
  for (int i = 2; i <= most; ++i)
    if (tiles <= kRoom[i] && s.num_kb >= i * kLeastBlocks) split = i;
  return split;
}

// Few rows an expert: the time is that of reading the weights of the experts that have any.
GemmConfig for_few_rows(const GemmSize& s, int64_t rows, int64_t active) {
  GemmConfig c{.early_start = true};
  c.swap = rows <= 64;
  c.tile_n = rows <= 16 ? 16 : rows <= 64 ? 64 : 128;
  c.sub = s.gated ? 2 : 1;
  const int64_t tiles = active * round_up(s.n, 128), last_round = tiles % kMultiprocessors;
  c.split = split_of(s, tiles, c.tile_n == 16 && tiles > 8 ? 4 : 8);
  if (!c.swap && c.split == 2 && tiles > 40 && tiles <= 60) c.multicast = 4;  // 15 clusters of eight
  // Many tiles: whole ones; sharing pays for the last round alone, when that is much of the whole and k is long.
  const bool short_last_round = tiles > kMultiprocessors && tiles < 4 * kMultiprocessors && last_round > 0 &&
                                last_round <= kMultiprocessors / 2 && s.num_kb >= 32;
  if (short_last_round && c.swap && c.tile_n > 16 && !s.deterministic) c.split = 2, c.multicast = 2;
  return c;
}

}  // namespace

GemmConfig choose_gemm_config(const GemmSize& s) {
  const int64_t active = std::min(s.num_experts, std::max<int64_t>(s.rows, 1)), rows = round_up(s.rows, active);
  if (rows <= 64 || (rows <= 128 && !s.gated)) return for_few_rows(s, rows, active);
  struct Straight {
    int sub, tile_n, cycles;  // of one k-block, the epilogue's share included
  };
  constexpr Straight kStraight[] = {{2, 128, 1390}, {1, 128, 750}, {1, 176, 1155}};
  GemmConfig c;
  int64_t best = INT64_MAX;
  for (const Straight& t : kStraight) {
    if (s.gated && (t.sub != 2 || t.tile_n != 128)) continue;
    const int64_t tokens = 128 * t.sub;
    const int64_t m_tiles = s.grouped ? s.rows / tokens + (active + 1) / 2 : round_up(s.rows, tokens);
    const int64_t tiles = m_tiles * round_up(s.gated ? 2 * s.n : s.n, t.tile_n);
    const int split = t.sub == 1 && t.tile_n == 128 ? split_of(s, tiles, 4) : 1;
    const int64_t cost = round_up(tiles, kMultiprocessors) * t.cycles / split;
    if (cost < best) best = cost, c.sub = t.sub, c.tile_n = t.tile_n, c.split = split, c.group_m = t.sub == 2 ? 8 : 16;
  }
  return c;
}

}  // namespace moectl::cuda
