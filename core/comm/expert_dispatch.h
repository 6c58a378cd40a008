// ExpertDispatch: sends each token's hidden state to the ranks that hold its experts (dispatch) and sums the experts'
// results at the token's rank (combine). One object per rank, used on its thread; ranks of a group make the same calls
// in the same order. Everything is put into device().stream(); between begin_step() calls nothing crosses hosts but
// what Communicator orders on the stream.
//
// Receive buffers are bounded: a step runs in rounds. In each, the same range of token indexes of every source rank is
// dispatched, computed and combined. A token's result depends neither on the bound nor on the number of ranks: its
// experts' rows are added in the order of its top-k choices.
//
//   begin_step(num_tokens)                     per step
//   for round in 0 .. num_rounds() - 1:        per MoE layer
//     rows = dispatch(tokens, round); moe_experts(rows.x -> rows.out); combine(args, round)
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "core/comm/all2all_backend.h"
#include "core/comm/communicator.h"
#include "core/parallel/expert_placement.h"
#include "kernels/ops.h"

namespace moectl {

struct ExpertDispatchConfig {
  int top_k = 0, hidden_size = 0;
  All2AllBackend backend = All2AllBackend::kAuto;
  // Equal bits for every number of ranks: results travel per choice and are added in the order of the choices. Else
  // ranks may add their experts' results of a token first.
  bool deterministic = true;
  bool peers_addressable = true;  // ranks address each other's memory; else tokens travel by collectives (kNaive)
  int max_tokens = 0;             // of a step, on any rank
  int64_t max_received_rows = 0;  // per rank and round, at least one token of each source; 0: what
                                  // kDefaultReceiveBytes hold, and for a rank alone all in one round
};
// Of a token's row and its result in f32.
inline constexpr int64_t kDefaultReceiveBytes = int64_t{1} << 30;

class ExpertDispatch {
 public:
  virtual ~ExpertDispatch() = default;
  // Rows that a rank's experts compute in a round, at most: dimensions of moe_experts' scratch.
  static int64_t max_rows(const ExpertPlacement& placement, const ExpertDispatchConfig& config);
  // Device memory that each rank's object takes.
  static int64_t num_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                           const Capabilities& capabilities);

  // Blocks the host until every rank has called (a rank alone: returns at once); ranks without work call with 0.
  // num_tokens: rows of the tokens that the layers will dispatch, padding included.
  virtual void begin_step(int64_t num_tokens) = 0;
  virtual int num_rounds() const = 0;  // of each layer of the step, the same on every rank; at least 1

  // The rank's tokens. Every step and rank passes them in the same buffers of max_tokens rows, which peers may read
  // until combine() of the last round.
  struct Tokens {
    Operand x;                        // [num_tokens, hidden_size]
    View<const int32_t> expert_idx;   // [num_tokens, top_k] logical; -1: none
    View<const float> expert_weight;  // [num_tokens, top_k]
    bool scale_rows = false;          // experts multiply by the weights (Received::scale), and combine() does not
    DType results = DType::kF32;      // what the experts write (ExpertOperands::out)
    int layer = -1;                   // of the model, for messages
  };
  // What this rank's experts compute: rows sorted by local expert, then source rank, token and slot.
  struct Received {
    Operand x;                     // [max_rows, hidden_size] in the tokens' dtype
    View<int32_t> expert_offsets;  // [num_local_experts + 1], on the device; the last one: number of rows
    Operand out;                   // [max_rows, hidden_size] of Tokens::results: to be written before combine()
    View<float> scale;             // [max_rows]: the rows' weights; empty unless Tokens::scale_rows
  };
  virtual Received dispatch(const Tokens& tokens, int round) = 0;
  // `args` of all tokens of the rank, without expert_rows; writes `out` of the round's tokens.
  virtual void combine(const MoeCombineArgs& args, int round) = 0;

  // [num_local_experts]: the logical expert that each local expert is, on the device; empty: 0, 1, 2, ...
  virtual View<const int32_t> logical_experts() const = 0;
};

// All ranks of a group construct together. Two forms are for ranks that address each other's memory. One reads (kNaive,
// and a rank alone): destination ranks read the tokens that they need in place (Ops::moe_permute), source ranks the
// results (Ops::moe_locate); two barriers per round, none for a rank alone. The other stores (the other backends,
// Ops::expert_all_to_all). kAuto stores on GPUs and reads on the CPU, where a copy costs as much as a read. A third
// form is for ranks that do not (peers_addressable false): it moves every rank's tokens to every rank by all-gathers.
// Throws Error{kBadConfig} for a backend that these ranks cannot have.
std::unique_ptr<ExpertDispatch> make_expert_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                     const ExpertDispatchConfig& config);

}  // namespace moectl
