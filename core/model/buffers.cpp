#include "core/model/buffers.h"

#include <algorithm>

#include "core/base/check.h"

namespace moectl {
namespace {

constexpr int64_t kAlignment = 256;
constexpr DType kOperandDTypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3};

int64_t aligned(int64_t num_bytes) {
  return (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

int64_t OperandBuffer::num_bytes(int64_t rows, int64_t row_size, DTypeSet dtypes) {
  int64_t sum = 0;
  for (DType t : kOperandDTypes)
    if (dtypes.has(t)) sum += aligned(Operand::num_bytes(t, rows, row_size));
  return sum;
}

Operands OperandBuffer::rows(int64_t n, int64_t row_size, DTypeSet dtypes) const {
  CHECK(num_bytes(n, row_size, dtypes) <= num_bytes_, "[{}, {}] activations take {} bytes of {}", n, row_size,
        num_bytes(n, row_size, dtypes), num_bytes_);
  Operands out;
  std::byte* at = memory_.get();
  for (DType t : kOperandDTypes) {
    if (!dtypes.has(t)) continue;
    out.set(Operand(at, t, {n, row_size}));
    at += aligned(out.slot(t).num_bytes());
  }
  return out;
}

void Buffers::visit(const Config& config, const ModelLimits& limits, int64_t expert_rows,
                    const Capabilities& capabilities, auto&& make) {
  const int64_t tokens = limits.max_tokens, hidden_size = config.hidden_size, heads_n = config.num_heads;
  const MlaConfig& mla = config.mla;
  const MoeConfig& moe = config.moe;
  const int64_t latent_size = mla.kv_lora_rank + mla.qk_rope_head_dim;
  DTypeSet any;
  for (DType t : capabilities.operand_dtypes) any.add(t);
  const auto rows = [](int64_t n, int64_t size, DTypeSet dtypes) { return OperandBuffer::num_bytes(n, size, dtypes); };
  // Between the two products of a feed-forward: f32, or the others together.
  const auto hidden_rows = [&](int64_t n, int64_t size) {
    DTypeSet narrow = any;
    narrow.f32 = false;
    return std::max(rows(n, size, {DType::kF32}), rows(n, size, narrow));
  };
  // Compressed KV: one dtype of f32 and bf16.
  const auto wide_rows = [&](int64_t n, int64_t size) { return rows(n, size, {DType::kF32}); };
  make(cos_sin, {tokens, config.rope.dim});
  make(residual, {tokens, hidden_size});
  make(delta, {tokens, hidden_size});
  make(normed, rows(tokens, hidden_size, any));
  make(hidden, rows(tokens, hidden_size, any));
  if (config.attention() == AttentionKind::kMla) {
    make(q, {tokens, heads_n, mla.qk_nope_head_dim + mla.qk_rope_head_dim});
    make(heads, rows(tokens, heads_n * mla.v_head_dim, any));
    make(q_a, {tokens, std::max(mla.q_lora_rank, 1)});
    make(q_a_normed, rows(tokens, std::max(mla.q_lora_rank, 1), any));
    make(kv_a, {tokens, latent_size});
    make(q_latent, wide_rows(tokens, heads_n * latent_size));
    make(latent, wide_rows(tokens, heads_n * mla.kv_lora_rank));
  } else {
    const int64_t kv_heads = config.gqa.num_kv_heads, head_dim = config.gqa.head_dim;
    make(q, {tokens, heads_n, head_dim});
    make(heads, rows(tokens, heads_n * head_dim, any));
    make(k, {tokens, kv_heads, head_dim});
    make(v, {tokens, kv_heads, head_dim});
  }
  make(mlp_hidden,
       std::max(hidden_rows(tokens, config.intermediate_size), hidden_rows(expert_rows, moe.moe_intermediate_size)));
  make(shared_hidden, hidden_rows(tokens, std::max(moe.shared_intermediate_size, 1)));
  make(gate_logits, {tokens, std::max(moe.num_experts, 1)});
  make(expert_idx, {tokens, std::max(moe.num_experts_per_tok, 1)});
  make(expert_weight, {tokens, std::max(moe.num_experts_per_tok, 1)});
  make(shared, {tokens, hidden_size});
  make(shared_gate, {tokens, 1});
  make(logits_hidden, rows(limits.max_logits, hidden_size, any));
  make(logits, {limits.max_logits, config.vocab_size});
  make(sampled, {limits.max_logits});
}

namespace {

template <class F>
struct Maker {
  F take;  // take(num_bytes) -> memory
  template <class T>
  void operator()(View<T>& view, std::initializer_list<int64_t> dims) const {
    const View<T> shape(nullptr, dims);
    view = shape;
    view.data = reinterpret_cast<T*>(take(shape.size() * int64_t(sizeof(T))).get());
  }
  void operator()(OperandBuffer& buffer, int64_t num_bytes) const { buffer.set_memory(take(num_bytes), num_bytes); }
};

}  // namespace

Buffers::Buffers(const Config& config, const ModelLimits& limits, int64_t expert_rows, Ops& ops) {
  const auto take = [&](int64_t num_bytes) { return storage_.emplace_back(ops.device().alloc(num_bytes)); };
  visit(config, limits, expert_rows, ops.capabilities(), Maker<decltype(take)>{take});
}

int64_t Buffers::num_bytes(const Config& config, const ModelLimits& limits, int64_t expert_rows,
                           const Capabilities& capabilities) {
  int64_t sum = 0;
  const auto take = [&](int64_t num_bytes) {
    sum += num_bytes;
    return Buffer();
  };
  Buffers().visit(config, limits, expert_rows, capabilities, Maker<decltype(take)>{take});
  return sum;
}

}  // namespace moectl
