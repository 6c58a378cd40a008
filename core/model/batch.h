// Batch: the rows of one step of one rank. A row is a token of a sequence at a position; prefill chunks, decode,
// verification of drafts and prompt logprobs are all rows. Plain data, made by the scheduler, read by the model.
#pragma once

#include <cstdint>
#include <vector>

namespace moectl {

inline constexpr int kPageSize = 64;  // tokens a KV page

struct Batch {
  std::vector<int32_t> token_ids;    // [num_tokens]; -1 - i: not known yet, token i of Model::sampled()
  std::vector<int32_t> positions;    // [num_tokens]; rows of one sequence in ascending order
  std::vector<int32_t> seq_idx;      // [num_tokens]: row of page_table
  std::vector<int32_t> page_table;   // [num_seqs, max_pages]: page ids; unused entries are 0
  int max_pages = 0;                 // row length of page_table
  std::vector<int32_t> logits_rows;  // [num_logits]: rows whose logits are wanted, ascending

  int num_tokens() const { return int(token_ids.size()); }
  int num_seqs() const { return max_pages ? int(page_table.size()) / max_pages : 0; }
  int num_logits() const { return int(logits_rows.size()); }
};

}  // namespace moectl
