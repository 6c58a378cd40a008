#include "core/model/buffers.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/model/tensor_parallel.h"

namespace moectl {
namespace {

constexpr int64_t kAlignment = 256;
constexpr DType kOperandDTypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3};

int64_t aligned(int64_t num_bytes) {
  return (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

OperandBuffer::Layout OperandBuffer::layout(const Shape& shape) {
  Layout out;
  int64_t next = 0;
  for (size_t i = 0; i < std::size(kOperandDTypes); ++i) {
    if (i == 1 && shape.alternatives) next = 0;  // behind f32 come the others
    if (!shape.dtypes.has(kOperandDTypes[i])) continue;
    out.capacity[i] = aligned(Operand::num_bytes(kOperandDTypes[i], shape.max_rows, shape.row_size));
    out.offset[i] = next;
    next += out.capacity[i];
    out.num_bytes = std::max(out.num_bytes, next);
  }
  return out;
}

void OperandBuffer::set_memory(Buffer memory, const Shape& shape) {
  memory_ = std::move(memory);
  layout_ = layout(shape);
}

Operands OperandBuffer::rows(int64_t n, int64_t row_size, DTypeSet dtypes) const {
  Operands out;
  for (size_t i = 0; i < std::size(kOperandDTypes); ++i) {
    const DType t = kOperandDTypes[i];
    if (!dtypes.has(t)) continue;
    const Operand operand(memory_.get() + layout_.offset[i], t, {n, row_size});
    CHECK(operand.num_bytes() <= layout_.capacity[i], "[{}, {}] activations of {} take {} bytes of {}", n, row_size,
          dtype_name(t), operand.num_bytes(), layout_.capacity[i]);
    out.set(operand);
  }
  return out;
}

void Buffers::visit(const Config& config, const LocalDims& dims, const ModelLimits& limits, int64_t expert_rows,
                    const Capabilities& capabilities, auto&& make) {
  const int64_t tokens = limits.max_tokens, hidden_size = config.hidden_size, heads_n = dims.num_heads;
  const int64_t padded_tokens = TensorParallel::padded_rows(tokens, dims);
  const bool has_group = dims.tp_size > 1;
  const MlaConfig& mla = config.mla;
  const MoeConfig& moe = config.moe;
  const int64_t latent_size = mla.kv_lora_rank + mla.qk_rope_head_dim;
  DTypeSet any;
  for (DType t : capabilities.operand_dtypes) any.add(t);
  const auto rows = [&](int64_t n, int64_t size) { return OperandBuffer::Shape{n, size, any}; };
  const auto one_of = [&](int64_t n, int64_t size) { return OperandBuffer::Shape{n, size, any, true}; };
  // Dense layers and routed experts take turns: as many values as the larger one, whatever their rows.
  const int64_t mlp_size = std::max<int64_t>({dims.intermediate_size, dims.moe_intermediate_size, kFp8Block});
  const int64_t mlp_row = (mlp_size + kFp8Block - 1) / kFp8Block * kFp8Block;
  const int64_t mlp_values = std::max(tokens * dims.intermediate_size, expert_rows * dims.moe_intermediate_size);
  constexpr int64_t kScaleRows = 8;  // more, for scales of up to three rows that are padding
  make(cos_sin, {tokens, config.rope.dim});
  make(residual, {tokens, hidden_size});
  make(delta, {padded_tokens, hidden_size});
  make(normed, rows(tokens, hidden_size));
  make(hidden, rows(tokens, hidden_size));
  if (config.attention() == AttentionKind::kMla) {
    make(q, {tokens, heads_n, mla.qk_nope_head_dim + mla.qk_rope_head_dim});
    make(heads, rows(tokens, heads_n * mla.v_head_dim));
    make(q_a, {tokens, std::max(mla.q_lora_rank, 1)});
    make(q_a_normed, rows(tokens, std::max(mla.q_lora_rank, 1)));
    make(kv_a, {tokens, latent_size});
    make(q_latent, one_of(tokens, heads_n * latent_size));
    make(latent, one_of(tokens, heads_n * mla.kv_lora_rank));
  } else {
    const int64_t kv_heads = dims.num_kv_heads, head_dim = config.gqa.head_dim;
    make(q, {tokens, heads_n, head_dim});
    make(heads, rows(tokens, heads_n * head_dim));
    make(k, {tokens, kv_heads, head_dim});
    make(v, {tokens, kv_heads, head_dim});
    if (has_group) make(square_sums, {tokens});
  }
  make(mlp_hidden, one_of((mlp_values + mlp_row - 1) / mlp_row + kScaleRows, mlp_row));
  make(shared_hidden, one_of(tokens, std::max(dims.shared_intermediate_size, 1)));
  make(gate_logits, {tokens, std::max(moe.num_experts, 1)});
  make(expert_idx, {tokens, std::max(moe.num_experts_per_tok, 1)});
  make(expert_weight, {tokens, std::max(moe.num_experts_per_tok, 1)});
  if (has_group && !dims.splits_experts) make(routed, rows(TensorParallel::max_share(tokens, dims), hidden_size));
  make(shared, {padded_tokens, hidden_size});
  make(shared_gate, {tokens, 1});
  make(logits_hidden, rows(limits.max_logits, hidden_size));
  if (has_group) make(logits_parts, {dims.tp_size, limits.max_logits * vocab_part(config.vocab_size, dims.tp_size)});
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
  void operator()(OperandBuffer& buffer, const OperandBuffer::Shape& shape) const {
    buffer.set_memory(take(OperandBuffer::num_bytes(shape)), shape);
  }
};

}  // namespace

Buffers::Buffers(const Config& config, const LocalDims& dims, const ModelLimits& limits, int64_t expert_rows,
                 Ops& ops) {
  const auto take = [&](int64_t num_bytes) { return storage_.emplace_back(ops.device().alloc(num_bytes)); };
  visit(config, dims, limits, expert_rows, ops.capabilities(), Maker<decltype(take)>{take});
}

int64_t Buffers::num_bytes(const Config& config, const LocalDims& dims, const ModelLimits& limits, int64_t expert_rows,
                           const Capabilities& capabilities) {
  int64_t sum = 0;
  const auto take = [&](int64_t num_bytes) {
    sum += num_bytes;
    return Buffer();
  };
  Buffers().visit(config, dims, limits, expert_rows, capabilities, Maker<decltype(take)>{take});
  return sum;
}

}  // namespace moectl
