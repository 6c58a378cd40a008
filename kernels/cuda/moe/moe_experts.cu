// The gated feed-forward of several experts: three grouped products. Each goes over the experts' rows by
// expert_offsets, which only the device knows; gate leaves its factor of the activation in `hidden`, up multiplies it.
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {

void moe_experts(const MoeExpertsArgs& a, Numerics numerics, Stream stream) {
  const Matrix &gate = matrix_of(a.w_gate), &up = matrix_of(a.w_up), &down = matrix_of(a.w_down);
  const int64_t num_experts = a.expert_offsets.dim(0) - 1, hidden_size = down.n, intermediate = gate.n;
  const View<float> hidden = a.hidden.get(DType::kF32).f32();
  CHECK(gate.k == hidden_size && up.n == intermediate && up.k == hidden_size && down.k == intermediate &&
            a.x.row_size() == hidden_size && hidden.row_size() == intermediate && a.out.row_size() == hidden_size,
        "moe_experts: rows of {}, gate [{}, {}], up [{}, {}], down [{}, {}]", a.x.row_size(), gate.n, gate.k, up.n,
        up.k, down.n, down.k);
  CHECK(num_experts <= std::min({a.w_gate.batch, a.w_up.batch, a.w_down.batch}), "moe_experts: {} experts of {}",
        num_experts, a.w_gate.batch);
  PlainGemm p = {.w = gate,
                 .num_batches = num_experts,
                 .x = a.x.f32().data,
                 .x_row = hidden_size,
                 .out = hidden.data,
                 .out_row = intermediate,
                 .offsets = a.expert_offsets.data,
                 .num_rows = a.x.dim(0),
                 .epilogue = PlainGemm::Epilogue::kGate,
                 .activation = a.activation,
                 .row_scale = a.row_scale.data,
                 .bias = a.gate_bias.data};
  any_gemm(p, numerics, stream);
  p.w = up;
  p.epilogue = PlainGemm::Epilogue::kUp;
  p.bias = a.up_bias.data;
  any_gemm(p, numerics, stream);
  any_gemm({.w = down,
            .num_batches = num_experts,
            .x = hidden.data,
            .x_row = intermediate,
            .out = a.out.f32().data,
            .out_row = hidden_size,
            .offsets = a.expert_offsets.data,
            .num_rows = a.x.dim(0),
            .bias = a.down_bias.data},
           numerics, stream);
}

}  // namespace moectl::cuda
