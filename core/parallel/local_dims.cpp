#include "core/parallel/local_dims.h"

#include <algorithm>

namespace moectl {

LocalDims local_dims(const ModelDims& model, const Parallelism& p, int rank, int num_physical_experts) {
  const int tp = p.tp_size, r = p.tp_rank(rank);
  LocalDims d = {.tp_size = tp, .tp_rank = r, .splits_experts = tp > 1 && p.ep_size == 1 && model.num_experts > 0};
  d.num_heads = model.num_heads / tp;
  d.head_begin = r * d.num_heads;
  if (model.num_kv_heads > 0) {
    d.num_kv_heads = std::max(1, model.num_kv_heads / tp);
    d.kv_head_begin = int(int64_t{r} * model.num_kv_heads / tp);
  }
  d.intermediate_size = model.intermediate_size / tp;
  d.intermediate_begin = r * d.intermediate_size;
  d.shared_intermediate_size = model.shared_intermediate_size / tp;
  d.shared_intermediate_begin = r * d.shared_intermediate_size;
  d.num_local_experts = num_physical_experts / p.ep_size;
  d.moe_intermediate_size = model.moe_intermediate_size / (d.splits_experts ? tp : 1);
  d.moe_intermediate_begin = d.splits_experts ? r * d.moe_intermediate_size : 0;
  const int vocab = int(vocab_part(model.vocab_size, tp));
  d.vocab_begin = std::min(r * vocab, model.vocab_size);
  d.vocab_size = std::min(vocab, model.vocab_size - d.vocab_begin);
  return d;
}

}  // namespace moectl
