// Matrix products of one layer, m rows by each of its matrices, against cuBLASLt.
#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/gemm/bf16_gemm.h"
#include "kernels/cuda/gemm/cublaslt.h"
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda::bench {
namespace {

struct Matrix {
  const char* name;
  int64_t n, k;
};

std::vector<Matrix> matrices(const KernelShape& s) {
  std::vector<Matrix> all;
  const auto add = [&](const char* name, int64_t n, int64_t k) {
    if (n > 0 && k > 0) all.push_back({name, n, k});
  };
  if (s.kv_lora_rank > 0) {
    add("qkv_a", s.q_lora_rank + s.kv_lora_rank + s.qk_rope_head_dim, s.hidden_size);
    add("q_b", int64_t{s.num_heads} * (s.qk_nope_head_dim + s.qk_rope_head_dim), s.q_lora_rank);
    add("o_proj", s.hidden_size, int64_t{s.num_heads} * s.v_head_dim);
  } else {
    add("qkv", int64_t{s.num_heads + 2 * s.num_kv_heads} * s.head_dim, s.hidden_size);
    add("o_proj", s.hidden_size, int64_t{s.num_heads} * s.head_dim);
  }
  add("expert gate_up", 2 * s.moe_intermediate_size, s.hidden_size);
  add("dense down", s.hidden_size, s.dense_intermediate_size);
  return all;
}

int64_t round_up(int64_t v, int64_t to) {
  return (v + to - 1) / to * to;
}

LtMatmulArgs lt_args(Memory& memory, int64_t m, int64_t n, int64_t k) {
  LtMatmulArgs lt{.m = m, .n = n, .k = k};
  lt.out = memory.alloc<float>(m * n);
  lt.workspace = memory.alloc<std::byte>(kLtWorkspaceBytes);
  return lt;
}

std::function<void(Stream)> peer(const LtMatmulArgs& lt) {
  return [lt](Stream stream) { CublasLt::get().matmul(lt, stream); };
}

// Random values are random in any layout, so our kernel and the library read the same memory.
Case f8_case(const KernelShape& s, const Matrix& w, int64_t m) {
  const int64_t n = w.n, k = w.k;
  Case c{.kernel = "fp8_gemm",
         .shape = fmt::format("{} {} {}x{}x{}", s.name, w.name, m, n, k),
         .bytes = double(m * k + n * k) + double(m * n) * 2,
         .flops = 2.0 * double(m) * double(n) * double(k),
         .unit = Unit::kF8,
         .peers = {"cuBLASLt, block scales", "cuBLASLt, tensor scales"}};
  c.make = [=](Memory& memory) {
    const Weight weight = random_weight(memory, true, 1, n, k);
    Fp8GemmArgs args{.a = random_fp8_rows(memory, m, k), .w = fp8_weight_of(weight)};
    args.out = memory.alloc<__nv_bfloat16>(m * n);
    args.out_type = DType::kBF16;
    LtMatmulArgs block = lt_args(memory, m, n, k);
    block.dtype = DType::kF8E4M3;
    block.scales = LtScales::kBlock;
    block.x = args.a.data;
    block.w = args.w.data;
    block.x_scales = args.a.scales;
    block.w_scales = memory.positive(round_up(n, 128) / 128 * round_up(k, 512) / 128, 1e-3f, 2e-3f);
    LtMatmulArgs tensor = block;
    tensor.scales = LtScales::kTensor;
    tensor.fast_accumulation = true;
    Work work;
    work.run = [args, weight](Stream stream) { fp8_gemm(args, stream); };
    work.peers = {peer(block), peer(tensor)};
    work.out = args.out;
    work.out_bytes = m * n * 2;
    return work;
  };
  return c;
}

Case bf16_case(const KernelShape& s, const Matrix& w, int64_t m) {
  const int64_t n = w.n, k = w.k;
  Case c{.kernel = "bf16_gemm",
         .shape = fmt::format("{} {} {}x{}x{}", s.name, w.name, m, n, k),
         .bytes = double(n * k + m * k) * 2 + double(m * n) * 4,
         .flops = 2.0 * double(m) * double(n) * double(k),
         .unit = Unit::kBf16,
         .peers = {"cuBLASLt", "our mma_gemm"}};
  c.make = [=](Memory& memory) {
    // The portable kernel takes the rows as f32.
    LinearArgs any{.x = View<float>(memory.floats(m * k), {m, k}), .weight = random_weight(memory, false, 1, n, k)};
    any.out = {memory.alloc<float>(m * n), {m, n}};
    Bf16GemmArgs args{.a = memory.bf16(m * k), .rows = m, .n = n, .k = k, .w = weight_data(any.weight)};
    args.out = memory.alloc<float>(m * n);
    LtMatmulArgs lt = lt_args(memory, m, n, k);
    lt.out_dtype = DType::kF32;
    lt.x = args.a;
    lt.w = args.w;
    Work work;
    work.run = [args](Stream stream) { bf16_gemm(args, stream); };
    work.peers = {peer(lt), [any](Stream stream) { linear(any, {.tensor_cores = true}, stream); }};
    work.out = args.out;
    work.out_bytes = m * n * 4;
    return work;
  };
  return c;
}

}  // namespace

void add_gemm_cases(const KernelShape& s, Cases& cases) {
  for (const Matrix& w : matrices(s))
    for (const int64_t m : {1, 64, 128, 4096}) cases.push_back(s.f8 ? f8_case(s, w, m) : bf16_case(s, w, m));
  for (const int64_t m : {1, 64, 128}) {
    cases.push_back(bf16_case(s, {"gate", s.num_experts, s.hidden_size}, m));
    cases.push_back(bf16_case(s, {"head", s.vocab_size, s.hidden_size}, m));
  }
}

}  // namespace moectl::cuda::bench
