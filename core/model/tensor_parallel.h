// TensorParallel: what the ranks of a TP group exchange within a step. All of them hold the same tokens; each computes
// a part of every layer. A rank alone (tp_size 1) exchanges nothing. One object per rank, used on its thread; ranks of
// a group make the same calls in the same order.
//
// Sums are added in rank order: all ranks hold the same bits, and those of a row depend on nothing but the row.
#pragma once

#include <cstdint>

#include "core/comm/communicator.h"
#include "core/parallel/local_dims.h"

namespace moectl {

class TensorParallel {
 public:
  // `group`: of dims.tp_size ranks, in the order of dims.tp_rank; null: a rank alone.
  TensorParallel(Communicator* group, const LocalDims& dims);

  int size() const { return size_; }
  int rank() const { return rank_; }
  // For what a sum over the ranks must contain once (biases) and what is counted once.
  bool is_first() const { return rank_ == 0; }

  // Memory that the collectives below are called for. Once per buffer; blocks the host. Empty buffers are ignored.
  void register_buffer(View<float> buffer);
  // rows = the sum of all ranks' rows.
  void all_reduce(View<float> rows, Stream stream);
  // parts [size, any]: row `rank` of each rank, which is there already, to all of them.
  void all_gather(View<float> parts, Stream stream);

  // With expert parallelism each rank sends its share of the group's tokens to the experts: tokens [begin, begin +
  // num). Where each rank holds a part of every expert, or is alone: all tokens.
  struct Share {
    int64_t begin = 0, num = 0;
  };
  bool shares_tokens() const { return shares_tokens_; }
  Share share(int64_t num_tokens) const;
  // `rows` [num_tokens, any] of a buffer of padded_rows(max_tokens): the share's rows = the sum of all ranks' rows; the
  // others are undefined afterwards.
  void reduce_scatter_shares(View<float> rows, Stream stream);
  // Likewise: the rows of each rank's share to all ranks.
  void all_gather_shares(View<float> rows, Stream stream);
  static int64_t max_share(int64_t max_tokens, const LocalDims& dims);
  static int64_t padded_rows(int64_t max_tokens, const LocalDims& dims);

 private:
  View<float> by_rank(View<float> rows) const;

  Communicator* const group_;
  const int size_, rank_;
  const bool shares_tokens_;
};

}  // namespace moectl
