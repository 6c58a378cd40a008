// StepInputs: the inputs of one step on the device, in one block of memory, so that a step begins with one copy. Two
// host blocks alternate: one may still be in flight while the next step is written.
#pragma once

#include <array>
#include <vector>

#include "core/model/batch.h"
#include "core/model/model.h"
#include "kernels/ops.h"

namespace moectl {

// Rows [row, row + num_rows) of a step, at consecutive positions of one sequence.
struct PrefillChunk {
  int64_t row = 0, num_rows = 0, seq = 0, first_position = 0;
};

class StepInputs {
 public:
  // `min_chunk`: rows of a prefill chunk that ExpandedMla may take, at least; 0: there is no ExpandedMla.
  StepInputs(const ModelLimits& limits, Device& device, int64_t min_chunk);
  static int64_t num_bytes(const ModelLimits& limits);  // on the device
  // Columns of the page table of a captured step: few different ones.
  static int64_t page_stride(int64_t max_pages);

  // Puts the copy of `batch` into the stream and points the views at it. Rows beyond the batch, up to num_rows, and
  // logits rows up to num_logits are padding: token 0, no slot, no position. page_stride >= batch.max_pages.
  void set(const Batch& batch, int64_t num_rows, int64_t num_logits, int64_t page_stride, Stream stream);

  View<const int32_t> token_ids, positions, seq_idx;  // [num_rows]
  View<const int64_t> slots;                          // [num_rows]
  View<const int32_t> logits_rows;                    // [num_logits]
  View<const int32_t> one_expert;                     // [2]: offsets {0, num_rows} of a dense feed-forward
  View<const int32_t> page_table;                     // [max(num_seqs, 1), page_stride]
  std::vector<PrefillChunk> prefill_chunks;           // that ExpandedMla may take, by row; none in a captured step

 private:
  Device& device_;
  const int64_t max_bytes_, min_chunk_;
  Buffer inputs_;
  std::array<Buffer, 2> host_;
  size_t next_host_ = 0;
};

}  // namespace moectl
