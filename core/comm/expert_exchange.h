// ExpertExchange: moves each token's hidden state to the ranks that own its experts, and finds the results again. This
// is the naive form for ranks of one address space: peers publish pointers, owners copy the rows they need
// (Ops::moe_permute), sources read the results in place (Ops::moe_locate). Two barriers a layer. One object a rank,
// used on its thread; the buffers live as long as the exchange. A rank alone meets no barrier, and then nothing here
// waits for the device.
#pragma once

#include <cstdint>
#include <vector>

#include "core/comm/communicator.h"
#include "kernels/ops.h"

namespace moectl {

class ExpertExchange {
 public:
  // Experts are divided evenly: rank r owns [r, r + 1) * num_experts / size. `max_tokens` is the largest batch of any
  // rank. All ranks of a group construct together.
  ExpertExchange(Communicator& comm, Ops& ops, int num_experts, int top_k, int hidden_size, int max_tokens);
  // Device memory that the constructor takes.
  static int64_t num_bytes(int size, int num_experts, int top_k, int hidden_size, int max_tokens);

  int64_t expert_begin() const { return expert_begin_; }
  int64_t num_local_experts() const { return num_local_experts_; }

  // Rows that this rank's experts must compute, sorted by local expert, then by source rank and token.
  struct Received {
    View<const float> x;                 // [max_rows, hidden_size]; the last offset says how many there are
    View<const int32_t> expert_offsets;  // [num_local_experts + 1]
    View<float> out;                     // [max_rows, hidden_size]: write the experts' results here
    View<const float> scale;             // [max_rows]: the rows' weights; empty unless given to dispatch()
  };
  // x [num_tokens, hidden_size], expert_idx and expert_weight [num_tokens, top_k] must stay as they are until collect()
  // has returned. Weights travel with the rows where the experts need them: all ranks give some, or none does.
  // `for_experts`: MoePermuteArgs.
  Received dispatch(View<const float> x, View<const int32_t> expert_idx, View<const float> expert_weight = {},
                    const MoeExpertsArgs* for_experts = nullptr);
  // After the results were written: for each (token, slot) of this rank the row of its expert's result. The rows are
  // valid until the next dispatch of the group.
  View<const float* const> collect();

 private:
  // What a rank shows its peers.
  struct Shared {
    View<const float> x;
    View<const int32_t> expert_idx;
    View<const float> expert_weight;
    const float* out = nullptr;
    std::vector<int32_t*> row_of;  // [source rank]: MoeSource::row_of
  };
  void meet();

  Communicator& comm_;
  Ops& ops_;
  const int num_experts_, top_k_, hidden_size_, max_tokens_;
  int64_t expert_begin_ = 0, num_local_experts_ = 0;
  Shared mine_;
  std::vector<const Shared*> peers_;
  Buffer x_, out_, scale_, offsets_, row_of_, rows_;
  std::vector<MoeSource> sources_;
  std::vector<MoeOwner> owners_;
};

}  // namespace moectl
