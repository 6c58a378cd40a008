#include <algorithm>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/path_begin.h"

namespace {

// Splits (expert, tile) pairs over the chunks by cost: a tile of an expert costs as much as it has rows. Calls
// body(expert, tile_begin, tile_end) for the part of `chunk`.
template <class Body>
void for_expert_tiles(const int32_t* offsets, int64_t num_experts, int64_t num_tiles, int64_t chunk, int64_t chunks,
                      Body&& body) {
  const int64_t total = int64_t{offsets[num_experts]} * num_tiles;
  const int64_t lo = total * chunk / chunks, hi = total * (chunk + 1) / chunks;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e];
    if (rows == 0) continue;
    const int64_t first = int64_t{offsets[e]} * num_tiles;
    // The chunk owns the tiles whose cost begins in [lo, hi).
    auto tile_at = [&](int64_t cost) { return std::clamp<int64_t>((cost - first + rows - 1) / rows, 0, num_tiles); };
    const int64_t begin = lo > first ? tile_at(lo) : 0, end = hi > first ? tile_at(hi) : 0;
    if (begin < end) body(e, begin, end);
  }
}

// The two factors of the hidden value (Activation): of the gate's sum and of the up projection's.
inline F32x16 gate_activation(const Activation& a, F32x16 g) {
  if (a.kind == Activation::Kind::kSwiGlu) return silu(g);
  g = min(g, broadcast(a.limit));
  return g / (broadcast(1.0f) + exp(zero() - broadcast(a.alpha) * g));
}
inline F32x16 up_activation(const Activation& a, F32x16 u) {
  if (a.kind == Activation::Kind::kSwiGlu) return u;
  return max(min(u, broadcast(a.limit)), broadcast(-a.limit)) + broadcast(1.0f);
}

}  // namespace

void CpuOps::moe_experts(const MoeExpertsArgs& a, Stream) {
  const int64_t num_experts = a.expert_offsets.dim(0) - 1;
  const int32_t* offsets = a.expert_offsets.data;
  const int64_t num_rows = offsets[num_experts];
  if (num_rows == 0) return;
  const View<float> hidden = a.hidden.get(DType::kF32).f32();
  CHECK(num_rows <= a.x.dim(0), "{} expert rows in a buffer of {}", num_rows, a.x.dim(0));
  // Batch entry of each local expert's weights.
  const auto entry = [&](int64_t e) { return a.weight_idx ? int64_t{a.weight_idx(e)} : e; };
  const auto &gate = cpu::packed(a.w_gate).matrices, &up = cpu::packed(a.w_up).matrices,
             &down = cpu::packed(a.w_down).matrices;
  const int64_t hidden_size = a.w_down.n, intermediate = a.w_gate.n;
  const int chunks = pool_.num_chunks(num_rows * hidden_size * intermediate, kMinWorkPerThread);

  // The row's part of one tile of a batched bias [batch, n].
  auto bias_of = [](const View<const float>& bias, int64_t w, int64_t tile, int64_t n) {
    return tile_bias(bias.data + w * n, tile, n);
  };
  const float* const* x = row_pointers(a.x.f32().data, num_rows, hidden_size);
  pool_.run(chunks, [&](int chunk) {
    for_expert_tiles(
        offsets, num_experts, gate[0].num_tiles, chunk, chunks, [&](int64_t e, int64_t begin, int64_t end) {
          const int64_t row0 = offsets[e], rows = offsets[e + 1] - row0, w = entry(e);
          auto scaled = [&](int64_t row, F32x16 value) {
            return a.row_scale ? value * broadcast(a.row_scale(row0 + row)) : value;
          };
          gemm(gate[w], begin, end, x + row0, rows, [&](int64_t row, int64_t tile, F32x16 value) {
            value = scaled(row, value);
            if (a.gate_bias) value = value + bias_of(a.gate_bias, w, tile, intermediate);
            store_tile(hidden.row(row0 + row), tile, intermediate, gate_activation(a.activation, value));
          });
          gemm(up[w], begin, end, x + row0, rows, [&](int64_t row, int64_t tile, F32x16 value) {
            float* out = hidden.row(row0 + row);
            const int left = int(std::min<int64_t>(16, intermediate - tile * 16));
            value = scaled(row, value);
            if (a.up_bias) value = value + bias_of(a.up_bias, w, tile, intermediate);
            store_tile(out, tile, intermediate, load_part(out + tile * 16, left) * up_activation(a.activation, value));
          });
        });
  });
  const View<float> out = a.out.f32();
  const float* const* h = row_pointers(hidden.data, num_rows, intermediate);
  pool_.run(chunks, [&](int chunk) {
    for_expert_tiles(offsets, num_experts, down[0].num_tiles, chunk, chunks,
                     [&](int64_t e, int64_t begin, int64_t end) {
                       const int64_t row0 = offsets[e], rows = offsets[e + 1] - row0, w = entry(e);
                       gemm(down[w], begin, end, h + row0, rows, [&](int64_t row, int64_t tile, F32x16 value) {
                         if (a.down_bias) value = value + bias_of(a.down_bias, w, tile, hidden_size);
                         store_tile(out.row(row0 + row), tile, hidden_size, value);
                       });
                     });
  });
}

#include "kernels/cpu/path_end.h"
