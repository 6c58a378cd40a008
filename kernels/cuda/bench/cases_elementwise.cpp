// Operations that only move rows, against a device copy that moves as many bytes.
#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/elementwise/rms_norm.h"
#include "kernels/cuda/runtime/check.h"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda::bench {
std::vector<std::string> copy_peer() {
  return {"copy of as many bytes"};
}

std::function<void(Stream)> copy_of(Memory& memory, double bytes) {
  const int64_t half = int64_t(bytes / 2);
  auto* from = memory.alloc<std::byte>(half);
  auto* to = memory.alloc<std::byte>(half);
  return [=](Stream stream) {
    CUDA_CHECK(
        cudaMemcpyAsync(to, from, size_t(half), cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream.handle)));
  };
}

namespace {

Case rms_norm_case(const KernelShape& s, int64_t rows) {
  const int64_t size = s.hidden_size;
  Case c{.kernel = "rms_norm",
         .shape = fmt::format("{} {}x{}, residual", s.name, rows, size),
         .bytes = 4.0 * double(rows * size) * 4,
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    RmsNormArgs args;
    args.x = {memory.floats(rows * size), {rows, size}};
    args.residual = {memory.floats(rows * size), {rows, size}};
    args.weight = {memory.floats(size), {size}};
    const View<float> out(memory.alloc<float>(rows * size), {rows, size});
    args.out = out;
    Work work;
    work.run = [args](Stream stream) { rms_norm(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = out.data;
    work.out_bytes = rows * size * 4;
    return work;
  };
  return c;
}

Fp8Rows f8_rows(Memory& memory, int64_t rows, int64_t k) {
  return fp8_rows_at(memory.alloc<std::byte>(fp8_rows_bytes(rows, k)), rows, k);
}

void set_out(Work& work, const Fp8Rows& out) {
  work.out = out.data;
  work.out_bytes = out.rows * out.k;
}

Case quantize_case(const KernelShape& s, int64_t rows) {
  const int64_t k = s.hidden_size;
  Case c{.kernel = "fp8_quantize",
         .shape = fmt::format("{} {}x{}", s.name, rows, k),
         .bytes = double(rows * k) * (4 + 1 + 4.0 / 128),
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    Fp8QuantizeArgs args{.x = memory.floats(rows * k), .out = f8_rows(memory, rows, k)};
    Work work;
    work.run = [args](Stream stream) { fp8_quantize(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    set_out(work, args.out);
    return work;
  };
  return c;
}

Case norm_quantize_case(const KernelShape& s, int64_t rows) {
  const int64_t k = s.hidden_size;
  Case c{.kernel = "rms_norm fp8",
         .shape = fmt::format("{} {}x{}, residual", s.name, rows, k),
         .bytes = double(rows * k) * (3 * 4 + 1 + 4.0 / 128),
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    RmsNormArgs args;
    args.x = {memory.floats(rows * k), {rows, k}};
    args.residual = {memory.floats(rows * k), {rows, k}};
    args.weight = {memory.floats(k), {k}};
    args.out.set(Operand(memory.alloc<std::byte>(fp8_rows_bytes(rows, k)), DType::kF8E4M3, {rows, k}));
    Work work;
    work.run = [=](Stream stream) { rms_norm(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    set_out(work, fp8_rows(args.out.fp8));
    return work;
  };
  return c;
}

// The slots of a step's tokens in the KV cache, each in a page of its own.
View<const int64_t> scattered_slots(Memory& memory, int64_t tokens, int page_size) {
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < tokens; ++i) slots.push_back(i * page_size + i % page_size);
  return {memory.upload(slots), {tokens}};
}

constexpr int kPageSize = 64;

Case mla_write_case(const KernelShape& s, int64_t tokens) {
  const int64_t rank = s.kv_lora_rank, rope = s.qk_rope_head_dim, width = rank + rope;
  Case c{.kernel = "mla_cache_write",
         .shape = fmt::format("{} {} tokens of {}", s.name, tokens, width),
         .bytes = double(tokens) * (double(width) * (4 + 2) + double(rope) * 4),
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    MlaCacheWriteArgs args;
    args.kv = {memory.floats(tokens * width), {tokens, width}};
    args.norm_weight = {memory.floats(rank), {rank}};
    args.cos_sin = {memory.floats(tokens * rope, 0.5f), {tokens, rope}};
    args.slots = scattered_slots(memory, tokens, kPageSize);
    args.cache = KvView(memory.bf16(tokens * kPageSize * width), DType::kBF16, {tokens, kPageSize, width});
    Work work;
    work.run = [args](Stream stream) { mla_cache_write(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = args.cache.data;
    work.out_bytes = tokens * kPageSize * width * 2;
    return work;
  };
  return c;
}

Case gqa_write_case(const KernelShape& s, int64_t tokens) {
  const int64_t heads = s.num_kv_heads, dim = s.head_dim;
  Case c{.kernel = "gqa_cache_write",
         .shape = fmt::format("{} {} tokens, {} heads of {}", s.name, tokens, heads, dim),
         .bytes = double(tokens * heads * dim) * 2 * (4 + 2),
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    GqaCacheWriteArgs args;
    args.k = {memory.floats(tokens * heads * dim), {tokens, heads, dim}};
    args.v = {memory.floats(tokens * heads * dim), {tokens, heads, dim}};
    args.slots = scattered_slots(memory, tokens, kPageSize);
    args.page_size = kPageSize;
    args.cache =
        KvView(memory.bf16(tokens * heads * 2 * kPageSize * dim), DType::kBF16, {tokens, heads, 2 * kPageSize, dim});
    Work work;
    work.run = [args](Stream stream) { gqa_cache_write(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = args.cache.data;
    work.out_bytes = tokens * heads * 2 * kPageSize * dim * 2;
    return work;
  };
  return c;
}

Case rope_case(const KernelShape& s, int64_t tokens) {
  const int64_t heads = s.num_heads, dim = s.head_dim;
  Case c{.kernel = "rope",
         .shape = fmt::format("{} {} tokens, {} heads of {}", s.name, tokens, heads, dim),
         .bytes = double(tokens * heads * dim) * 8 + double(tokens * dim) * 4,
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    RopeArgs args;
    args.x = {memory.floats(tokens * heads * dim), {tokens, heads, dim}};
    // Rotation by angle 0 leaves the values as they are.
    std::vector<float> cos_sin;
    for (int64_t i = 0; i < tokens * dim; ++i) cos_sin.push_back(i % dim < dim / 2 ? 1.0f : 0.0f);
    args.cos_sin = {memory.upload(cos_sin), {tokens, dim}};
    Work work;
    work.run = [args](Stream stream) { rope(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = args.x.data;
    work.out_bytes = args.x.size() * 4;
    return work;
  };
  return c;
}

}  // namespace

void add_elementwise_cases(const KernelShape& s, Cases& cases) {
  for (const int64_t rows : {1, 128, 4096}) {
    cases.push_back(rms_norm_case(s, rows));
    if (s.kv_lora_rank > 0) {
      cases.push_back(mla_write_case(s, rows));
    } else {
      cases.push_back(rope_case(s, rows));
      cases.push_back(gqa_write_case(s, rows));
    }
    if (!s.f8) continue;
    cases.push_back(norm_quantize_case(s, rows));
    cases.push_back(quantize_case(s, rows));
  }
}

}  // namespace moectl::cuda::bench
