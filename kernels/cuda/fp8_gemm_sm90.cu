// Launcher of fp8_gemm, and the choice of tilings (gemm_sm90.cuh has the kernel).
#include "kernels/cuda/fp8_gemm.h"
#include "kernels/cuda/gemm_launch.cuh"

namespace moectl::cuda {
namespace {

CUtensorMap weight_map(const Fp8Weight& w, int rows) {
  return make_tensor_map({.data = w.data,
                          .dims = {kFp8Block, w.n, w.k / kFp8Block, w.batch},
                          .stride_bytes = {kFp8Block, w.n * kFp8Block, w.n * w.k},
                          .box = {kFp8Block, rows, 1, 1},
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

CUtensorMap token_map(const Fp8Rows& a, int rows) {
  return make_tensor_map({.data = a.data,
                          .dims = {kFp8Block, a.rows, a.k / kFp8Block},
                          .stride_bytes = {kFp8Block, a.rows * kFp8Block},
                          .box = {kFp8Block, rows, 1},
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

void check(const Fp8GemmArgs& a) {
  const Fp8Weight& w = a.w;
  CHECK(w.data && w.scales && a.a.data && a.a.scales && a.out, "fp8_gemm: an operand is missing");
  CHECK(a.a.k == w.k && w.k > 0 && w.k % kFp8Block == 0, "fp8_gemm: rows of {} and a weight of [{}, {}]", a.a.k, w.n,
        w.k);
  CHECK(w.n > 0 && w.n % 8 == 0 && w.n <= INT_MAX / 2 && a.a.rows <= INT_MAX / 2, "fp8_gemm: [{}, {}] x [{}, {}]",
        a.a.rows, a.a.k, w.n, w.k);
  CHECK(a.a.scale_stride >= a.a.rows && a.a.scale_stride % 4 == 0 && w.scale_stride * kFp8Block >= w.n &&
            w.scale_stride % 4 == 0,
        "fp8_gemm: rows of {} and {} scales for {} rows and {} columns", a.a.scale_stride, w.scale_stride, a.a.rows,
        w.n);
  CHECK(a.out_type == DType::kF32 || a.out_type == DType::kBF16, "fp8_gemm: out must be f32 or bf16");
  CHECK(a.num_experts >= 1 && a.num_experts <= kMaxFp8Experts && (a.expert_offsets || a.num_experts == 1),
        "fp8_gemm: {} experts", a.num_experts);
  CHECK(a.expert_begin >= 0 && a.expert_begin + a.num_experts <= w.batch, "fp8_gemm: experts {} .. {} of {}",
        a.expert_begin, a.expert_begin + a.num_experts, w.batch);
  CHECK(!a.w_up.data || (a.w_up.n == w.n && a.w_up.k == w.k && a.w_up.batch == w.batch),
        "fp8_gemm: gate [{}, {}, {}] and up [{}, {}, {}] differ", w.batch, w.n, w.k, a.w_up.batch, a.w_up.n, a.w_up.k);
}

}  // namespace

// Measured on an H200 (docs/performance.md). Few tiles share k among the blocks of a cluster, so that every
// multiprocessor has work: four blocks as long as clusters of four surely find room (fewer than 132 / 4 do: they lie in
// one GPC), else two. Many tiles: whole ones; sharing pays for the last round alone, when that is much of the whole and
// k is long.
GemmConfig choose_gemm_config(const GemmSize& s) {
  constexpr int64_t kMultiprocessors = 132, kClustersOfFour = 24;
  const int64_t rows = (s.rows + s.num_experts - 1) / s.num_experts;  // of an expert, on average
  const auto round_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto split_of = [&](int64_t tiles) {
    if (s.deterministic || tiles > kMultiprocessors / 2) return 1;
    return tiles <= kClustersOfFour ? 4 : 2;
  };
  GemmConfig c;
  if (rows <= 64 || (rows <= 128 && !s.gated)) {
    c.swap = rows <= 64;
    c.tile_n = rows <= 16 ? 16 : rows <= 64 ? 64 : 128;
    c.sub = s.gated ? 2 : 1;
    c.early_start = true;
    const int64_t tiles = s.num_experts * round_up(s.n, 128), last_round = tiles % kMultiprocessors;
    c.split = split_of(tiles);
    const bool short_last_round = tiles > kMultiprocessors && tiles < 4 * kMultiprocessors && last_round > 0 &&
                                  last_round <= kMultiprocessors / 2 && s.num_kb >= 32;
    if (short_last_round && c.swap && !s.deterministic) c.split = 2, c.multicast = 2;
    if (!c.swap && c.split == 2 && tiles > 40) c.multicast = 2;
    if (c.tile_n == 16) c.split = std::min(c.split, 2), c.multicast = 1;
    return c;
  }
  struct Straight {
    int sub, tile_n, cycles;  // of one k-block, the epilogue's share included
  };
  constexpr Straight kStraight[] = {{2, 128, 1390}, {1, 128, 750}, {1, 176, 1155}};
  int64_t best = INT64_MAX;
  for (const Straight& t : kStraight) {
    if (s.gated && (t.sub != 2 || t.tile_n != 128)) continue;
    const int64_t tokens = 128 * t.sub;
    const int64_t m_tiles = s.grouped ? s.rows / tokens + (s.num_experts + 1) / 2 : round_up(s.rows, tokens);
    const int64_t tiles = m_tiles * round_up(s.gated ? 2 * s.n : s.n, t.tile_n);
    const int split = t.sub == 1 && t.tile_n == 128 ? split_of(tiles) : 1;
    const int64_t cost = round_up(tiles, kMultiprocessors) * t.cycles / split;
    if (cost < best) best = cost, c.sub = t.sub, c.tile_n = t.tile_n, c.split = split, c.group_m = t.sub == 2 ? 8 : 16;
  }
  return c;
}

GemmConfig fp8_gemm_config(const Fp8GemmArgs& a) {
  return choose_gemm_config({.rows = a.a.rows,
                             .n = a.w.n,
                             .num_kb = a.w.k / kFp8Block,
                             .num_experts = a.num_experts,
                             .grouped = a.expert_offsets != nullptr,
                             .gated = a.w_up.data != nullptr,
                             .deterministic = a.deterministic});
}

void fp8_gemm(const Fp8GemmArgs& a, const GemmConfig& c, Stream stream) {
  check(a);
  if (a.a.rows == 0) return;
  const bool gated = a.w_up.data != nullptr;
  const GemmProblem problem{"fp8_gemm",
                            kernel::GemmParams{.out = a.out,
                                               .out_bf16 = a.out_type == DType::kBF16,
                                               .m = int(a.a.rows),
                                               .n = int(a.w.n),
                                               .num_kb = int(a.w.k / kFp8Block),
                                               .a_scales = a.a.scales,
                                               .w_scales = a.w.scales,
                                               .w_up_scales = a.w_up.scales,
                                               .a_scale_stride = int(a.a.scale_stride),
                                               .w_scale_stride = int(a.w.scale_stride),
                                               .offsets = a.expert_offsets,
                                               .num_experts = int(a.num_experts),
                                               .expert_begin = int(a.expert_begin)},
                            a.a.rows, [&](int rows, bool up) { return weight_map(up ? a.w_up : a.w, rows); },
                            [&](int rows) { return token_map(a.a, rows); }};
#define MOECTL_TRY(SWAP, SUB, TILE_N, GATED)                                  \
  if (c.swap == SWAP && c.sub == SUB && c.tile_n == TILE_N && gated == GATED) \
  return launch_gemm<kernel::GemmShape<SWAP, SUB, TILE_N, GATED>>(problem, c, static_cast<cudaStream_t>(stream.handle))
  MOECTL_TRY(false, 2, 128, false);
  MOECTL_TRY(false, 1, 128, false);
  MOECTL_TRY(false, 1, 176, false);
  MOECTL_TRY(false, 2, 128, true);
  MOECTL_TRY(true, 1, 16, false);
  MOECTL_TRY(true, 1, 64, false);
  MOECTL_TRY(true, 2, 16, true);
  MOECTL_TRY(true, 2, 64, true);
#ifdef MOECTL_GEMM_TRIALS
  MOECTL_TRY(true, 2, 64, false);
#endif
#undef MOECTL_TRY
  CHECK(false, "fp8_gemm: no kernel for swap {} sub {} tile_n {} gated {}", c.swap, c.sub, c.tile_n, gated);
}

void fp8_gemm(const Fp8GemmArgs& a, Stream stream) {
  fp8_gemm(a, fp8_gemm_config(a), stream);
}

}  // namespace moectl::cuda
