// Routing of a step's tokens: gate, permute and combine; against a device copy of as many bytes.
#include <algorithm>
#include <random>

#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda::bench {
namespace {

// Experts of each token: top_k different ones, uniform.
std::vector<int32_t> routing(int64_t tokens, int num_experts, int top_k) {
  std::mt19937_64 rng(1);
  std::vector<int32_t> all(static_cast<size_t>(num_experts)), chosen;
  for (size_t i = 0; i < all.size(); ++i) all[i] = int32_t(i);
  for (int64_t t = 0; t < tokens; ++t)
    for (int j = 0; j < top_k; ++j) {
      std::swap(all[size_t(j)], all[size_t(j) + rng() % (all.size() - size_t(j))]);
      chosen.push_back(all[size_t(j)]);
    }
  return chosen;
}

Case gate_case(const KernelShape& s, int64_t tokens) {
  Case c{.kernel = "moe_gate",
         .shape = fmt::format("{} {} tokens, {} of {}", s.name, tokens, s.num_experts_per_tok, s.num_experts),
         .bytes = double(tokens) * (s.num_experts + 2 * s.num_experts_per_tok) * 4,
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    MoeGateArgs args;
    args.logits = {memory.floats(tokens * s.num_experts), {tokens, s.num_experts}};
    if (s.sigmoid_gate) args.bias = {memory.floats(s.num_experts, 0.1f), {s.num_experts}};
    args.expert_idx = {memory.alloc<int32_t>(tokens * s.num_experts_per_tok), {tokens, s.num_experts_per_tok}};
    args.expert_weight = {memory.alloc<float>(tokens * s.num_experts_per_tok), {tokens, s.num_experts_per_tok}};
    args.sigmoid = args.group_score_top2 = s.sigmoid_gate;
    args.normalize = true;
    args.num_groups = s.num_groups;
    args.num_topk_groups = s.num_topk_groups;
    Work work;
    work.run = [args](Stream stream) { moe_gate(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = args.expert_idx.data;
    work.out_bytes = args.expert_idx.size() * 4;
    return work;
  };
  return c;
}

Operand random_operand(Memory& memory, DType dtype, int64_t rows, int64_t size) {
  const int64_t num_bytes = Operand::num_bytes(dtype, rows, size);
  void* data = nullptr;
  if (dtype == DType::kF32) data = memory.floats(rows * size);
  if (dtype == DType::kBF16) data = memory.bf16(rows * size);
  if (dtype == DType::kF8E4M3) data = memory.f8(num_bytes);  // the scales are as random as the numbers
  return Operand(data, dtype, {rows, size});
}

Case permute_case(const KernelShape& s, int64_t tokens, DType dtype) {
  const int64_t top_k = s.num_experts_per_tok, rows = tokens * top_k, size = s.hidden_size;
  Case c{
      .kernel = "moe_permute",
      .shape = fmt::format("{} {} tokens to {} rows of {}{}", s.name, tokens, rows, size,
                           dtype == DType::kF32 ? "" : fmt::format(" {}", dtype_name(dtype))),
      .bytes = double(Operand::num_bytes(dtype, tokens, size) + Operand::num_bytes(dtype, rows, size) + 2 * rows * 4),
      .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    MoeSource source;
    source.x = random_operand(memory, dtype, tokens, size);
    source.expert_idx = {memory.upload(routing(tokens, s.num_experts, int(top_k))), {tokens, top_k}};
    source.row_of = {memory.alloc<int32_t>(rows), {rows}};
    const View<int32_t> offsets(memory.alloc<int32_t>(s.num_experts + 1), {s.num_experts + 1});
    const Operand x(memory.alloc<std::byte>(Operand::num_bytes(dtype, rows, size)), dtype, {rows, size});
    auto* counts = memory.alloc<int32_t>(s.num_experts);
    Work work;
    work.run = [=](Stream stream) {
      MoePermuteArgs args;
      args.sources = std::span(&source, 1);
      args.expert_offsets = offsets;
      args.x = x;
      moe_permute(args, counts, stream);
    };
    work.peers = {copy_of(memory, bytes)};
    work.out = x.data;
    work.out_bytes = rows * size * dtype_bytes(dtype);
    return work;
  };
  return c;
}

Case combine_case(const KernelShape& s, int64_t tokens) {
  const int64_t top_k = s.num_experts_per_tok, rows = tokens * top_k, size = s.hidden_size;
  Case c{.kernel = "moe_combine",
         .shape = fmt::format("{} {} rows to {} tokens of {}", s.name, rows, tokens, size),
         .bytes = double((2 * tokens + rows) * size) * 4,
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    const float* results = memory.floats(rows * size);
    std::vector<const void*> places;
    for (int64_t i = 0; i < rows; ++i) places.push_back(results + i * size);
    std::shuffle(places.begin(), places.end(), std::mt19937_64(1));
    MoeCombineArgs args;
    args.expert_rows = {memory.upload(places), {tokens, top_k}};
    args.expert_weight = {memory.positive(rows, 0.05f, 0.3f), {tokens, top_k}};
    args.shared = {memory.floats(tokens * size), {tokens, size}};
    args.out = {memory.alloc<float>(tokens * size), {tokens, size}};
    Work work;
    work.run = [args](Stream stream) { moe_combine(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = args.out.data;
    work.out_bytes = tokens * size * 4;
    return work;
  };
  return c;
}

}  // namespace

void add_moe_cases(const KernelShape& s, Cases& cases) {
  if (s.num_experts == 0) return;
  for (const int64_t tokens : {1, 128, 4096}) {
    cases.push_back(gate_case(s, tokens));
    cases.push_back(permute_case(s, tokens, DType::kF32));
    cases.push_back(permute_case(s, tokens, DType::kBF16));
    if (s.hidden_size % kFp8Block == 0) cases.push_back(permute_case(s, tokens, DType::kF8E4M3));
    cases.push_back(combine_case(s, tokens));
  }
}

}  // namespace moectl::cuda::bench
