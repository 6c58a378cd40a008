// LocalDims: the sizes of what one rank holds of the model. Plain data; with tp_size 1 all are the whole model's.
#pragma once

#include "core/parallel/parallelism.h"

namespace moectl {

// The sizes of the whole model that parallelism splits.
struct ModelDims {
  int num_heads = 0;
  int num_kv_heads = 0;       // 0: MLA, whose compressed KV every rank holds
  int intermediate_size = 0;  // of dense layers; 0: there are none, as below
  int shared_intermediate_size = 0, moe_intermediate_size = 0;
  int num_experts = 0;  // logical
  int vocab_size = 0;
};

// Ranges [*_begin, *_begin + size) of the whole model's.
struct LocalDims {
  int tp_size = 1, tp_rank = 0;
  bool splits_experts = false;  // each TP rank holds a part of every expert; else experts are whole
  int num_heads = 0, head_begin = 0;
  int num_kv_heads = 0, kv_head_begin = 0;  // tp_size above num_kv_heads: several TP ranks hold the same head
  int intermediate_size = 0, intermediate_begin = 0;
  int shared_intermediate_size = 0, shared_intermediate_begin = 0;
  int moe_intermediate_size = 0, moe_intermediate_begin = 0;  // the whole with expert parallelism
  int num_local_experts = 0;                                  // physical
  int vocab_size = 0, vocab_begin = 0;                        // the last TP rank may have fewer
  bool operator==(const LocalDims&) const = default;
};

// Rows of the vocabulary that each TP rank holds; the last one may hold fewer.
inline int64_t vocab_part(int64_t vocab_size, int tp_size) {
  return (vocab_size + tp_size - 1) / tp_size;
}

// `p` is checked (check_parallelism). `num_physical_experts`: ExpertPlacement's.
LocalDims local_dims(const ModelDims& model, const Parallelism& p, int rank, int num_physical_experts);

}  // namespace moectl
