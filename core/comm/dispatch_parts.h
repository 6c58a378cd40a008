// What the forms of ExpertDispatch have in common: the rounds of a step, and the buffers of what a rank's experts
// compute.
#pragma once

#include <utility>
#include <vector>

#include "core/comm/expert_dispatch.h"

namespace moectl {

// Of one source rank: the tokens of a round, and the rows that one of them adds to one rank at most.
struct RoundShape {
  int64_t max_tokens = 0, rows_per_token = 0;
};
RoundShape round_shape(const ExpertPlacement& placement, const ExpertDispatchConfig& config);

// Which tokens of each rank are in which round.
class Rounds {
 public:
  Rounds(Communicator& comm, const RoundShape& shape, int max_tokens)
      : comm_(comm), shape_(shape), max_tokens_(max_tokens), num_tokens_(size_t(comm.size())) {}
  void begin_step(int64_t num_tokens);  // ExpertDispatch::begin_step
  int num_rounds() const { return num_rounds_; }
  int64_t num_tokens(int rank) const { return num_tokens_[size_t(rank)]; }  // of the step
  int64_t all_tokens() const;                                               // of all ranks
  std::pair<int64_t, int64_t> tokens_of(int rank, int round) const;         // [begin, end)

 private:
  Communicator& comm_;
  const RoundShape shape_;
  const int64_t max_tokens_;
  std::vector<int64_t> num_tokens_;  // by rank
  int num_rounds_ = 1;
};

// A rank's own memory for one round.
class ReceiveBuffers {
 public:
  ReceiveBuffers(const ExpertPlacement& placement, const ExpertDispatchConfig& config, Ops& ops);
  static int64_t num_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                           const Capabilities& capabilities);
  ExpertDispatch::Received received(const ExpertDispatch::Tokens& tokens, int64_t num_rows) const;
  View<int32_t> row_of(int source) const;  // [tokens of a round * top_k]: MoeSource::row_of
  View<const void*> rows(int64_t num_tokens, int64_t per_token) const;  // MoeCombineArgs::expert_rows

  Buffer out, all_row_of;  // of all sources

 private:
  struct Sizes;
  static Sizes sizes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                     const Capabilities& capabilities);

  const int64_t num_local_, hidden_size_, choices_per_source_;
  Buffer x_, scale_, offsets_, rows_;
};

// Rows [begin, end) of a view that may be empty.
template <class T>
View<T> rows_of(const View<T>& view, int64_t begin, int64_t end) {
  if (!view) return view;
  View<T> part = view.first(end - begin);
  part.data = view.row(begin);
  return part;
}
// `args` of all tokens, for tokens [begin, end) whose results are `rows`.
MoeCombineArgs combine_part(const MoeCombineArgs& args, int64_t begin, int64_t end, const View<const void*>& rows,
                            DType rows_dtype);
// Communicator::register_buffer where peers read or write the buffer. Throws Error{kInternal} where they cannot.
std::vector<std::byte*> register_addressable(Communicator& comm, void* data, int64_t num_bytes);
// Throws Error{kInternal} for tokens that do not fit the step.
void check_tokens(const ExpertDispatch::Tokens& tokens, int64_t num_tokens, int top_k);

template <class T>
T* as(const Buffer& buffer) {
  return reinterpret_cast<T*>(buffer.get());
}

std::unique_ptr<ExpertDispatch> make_naive_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                    const ExpertDispatchConfig& config);
std::unique_ptr<ExpertDispatch> make_store_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                    const ExpertDispatchConfig& config);
std::unique_ptr<ExpertDispatch> make_gather_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                     const ExpertDispatchConfig& config);
// Of what these have besides ReceiveBuffers.
int64_t store_dispatch_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                             const Capabilities& capabilities);
int64_t gather_dispatch_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                              const Capabilities& capabilities);

}  // namespace moectl
