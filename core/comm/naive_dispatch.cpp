// The naive form of ExpertDispatch: peers' memory is read in place.
#include <algorithm>

#include "core/base/check.h"
#include "core/comm/dispatch_parts.h"

namespace moectl {
namespace {

class NaiveDispatch final : public ExpertDispatch {
 public:
  NaiveDispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement, const ExpertDispatchConfig& config)
      : comm_(comm),
        ops_(ops),
        config_(config),
        rank_(comm.rank()),
        rows_per_token_(round_shape(placement, config).rows_per_token),
        tables_(upload_placement(placement, comm.rank(), ops.device())),
        rounds_(comm, round_shape(placement, config), config.max_tokens),
        buffers_(placement, config, ops) {
    CHECK(placement.num_ranks == comm.size(), "a placement over {} ranks for a group of {}", placement.num_ranks,
          comm.size());
    register_once(buffers_.out.get(),
                  ExpertDispatch::max_rows(placement, config) * config.hidden_size * int64_t(sizeof(float)));
    const View<int32_t> row_of = buffers_.row_of(0);
    register_once(row_of.data, comm.size() * row_of.size() * int64_t(sizeof(int32_t)));
    for (int r = 0; r < comm.size(); ++r)
      results_.push_back({peer(buffers_.out.get(), r), peer(row_of.data, r) + rank_ * row_of.size()});
  }

  void begin_step(int64_t num_tokens) override { rounds_.begin_step(num_tokens); }
  int num_rounds() const override { return rounds_.num_rounds(); }

  // A barrier before: peers' tokens are there, and they have read the results of the round before, which the experts
  // are about to overwrite.
  Received dispatch(const Tokens& tokens, int round) override {
    check_tokens(tokens, rounds_.num_tokens(rank_), config_.top_k);
    expert_idx_ = tokens.expert_idx;
    results_dtype_ = tokens.results;
    const int64_t max_choices = int64_t{config_.max_tokens} * config_.top_k;
    register_once(tokens.x.data, Operand::num_bytes(tokens.x.dtype, config_.max_tokens, config_.hidden_size));
    register_once(tokens.expert_idx.data, max_choices * int64_t(sizeof(int32_t)));
    if (tokens.scale_rows) register_once(tokens.expert_weight.data, max_choices * int64_t(sizeof(float)));
    barrier();
    sources_.clear();
    int64_t num_rows = 0;
    for (int r = 0; r < comm_.size(); ++r) {
      const auto [begin, end] = rounds_.tokens_of(r, round);
      const auto choices = [&, first = begin, num = end - begin](auto view) {
        return decltype(view)(peer(view.data, r) + first * config_.top_k, {num, config_.top_k});
      };
      MoeSource source;
      source.x = Operand(peer(tokens.x.data, r), tokens.x.dtype, {rounds_.num_tokens(r), config_.hidden_size});
      source.expert_idx = choices(tokens.expert_idx);
      if (tokens.scale_rows) source.expert_weight = choices(tokens.expert_weight);
      source.row_of = buffers_.row_of(r).first((end - begin) * config_.top_k);
      source.token_begin = begin;
      sources_.push_back(source);
      num_rows += (end - begin) * rows_per_token_;
    }
    const Received received = buffers_.received(tokens, num_rows);
    ops_.moe_permute({.sources = sources_,
                      .placement = tables_.view,
                      .rank = rank_,
                      .expert_offsets = received.expert_offsets,
                      .x = received.x,
                      .scale = received.scale},
                     ops_.device().stream());
    return received;
  }

  // A barrier before: peers' results are there.
  void combine(const MoeCombineArgs& args, int round) override {
    barrier();
    const auto [begin, end] = rounds_.tokens_of(rank_, round);
    const View<const void*> rows = buffers_.rows(end - begin, config_.top_k);
    ops_.moe_locate({.expert_idx = rows_of(expert_idx_, begin, end),
                     .results = results_,
                     .placement = tables_.view,
                     .rank = rank_,
                     .token_begin = begin,
                     .row_bytes = config_.hidden_size * dtype_bytes(results_dtype_),
                     .expert_rows = rows},
                    ops_.device().stream());
    ops_.moe_combine(combine_part(args, begin, end, rows, results_dtype_), ops_.device().stream());
  }

  View<const int32_t> logical_experts() const override { return tables_.logical_experts; }

 private:
  struct Registered {
    const void* mine;
    std::vector<std::byte*> peers;  // by rank
  };

  void barrier() {
    if (comm_.size() > 1) comm_.barrier(ops_.device().stream());
  }

  // A buffer is registered when it is first dispatched from, which is in the same call on every rank: they run the same
  // layers, each with its buffers at the same addresses in every step.
  void register_once(const void* mine, int64_t num_bytes) {
    if (comm_.size() == 1 || find(mine)) return;
    auto* data = const_cast<std::byte*>(static_cast<const std::byte*>(mine));
    registered_.push_back({mine, register_addressable(comm_, data, num_bytes)});
  }
  const Registered* find(const void* mine) const {
    const auto it = std::ranges::find(registered_, mine, &Registered::mine);
    return it == registered_.end() ? nullptr : &*it;
  }
  // The buffer of rank `rank` that corresponds to this rank's `mine`.
  template <class T>
  T* peer(T* mine, int rank) const {
    return comm_.size() == 1 ? mine : reinterpret_cast<T*>(find(mine)->peers[size_t(rank)]);
  }

  Communicator& comm_;
  Ops& ops_;
  const ExpertDispatchConfig config_;
  const int rank_;
  const int64_t rows_per_token_;
  const PlacementTables tables_;
  Rounds rounds_;
  const ReceiveBuffers buffers_;
  std::vector<Registered> registered_;
  std::vector<MoeResults> results_;  // by rank, for this rank's tokens
  std::vector<MoeSource> sources_;
  View<const int32_t> expert_idx_;  // of the tokens that are being dispatched
  DType results_dtype_ = DType::kF32;
};

}  // namespace

std::unique_ptr<ExpertDispatch> make_naive_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                    const ExpertDispatchConfig& config) {
  return std::make_unique<NaiveDispatch>(comm, ops, placement, config);
}

}  // namespace moectl
