// The forms of ExpertDispatch that store into peers' memory: low_latency and high_throughput. They differ in how the
// backend numbers rows (DispatchArgs::low_latency); buffers and signals are the same, so a group may change from step
// to step.
#include <algorithm>

#include "core/base/check.h"
#include "core/comm/dispatch_parts.h"
#include "kernels/expert_all_to_all.h"

namespace moectl {
namespace {

// All choices of a step of all ranks, up to which rows are numbered while tokens travel: by one block, which has more
// to do than the wire for more of them.
constexpr int64_t kLowLatencyChoices = 4096;

// What peers store into one rank's memory; in bytes from the beginning of one buffer.
struct Inbox {
  int64_t token_bytes = 0, choices_bytes = 0;  // of one source
  int64_t x = 0, expert_idx = 0, expert_weight = 0, slots = 0, flags = 0, num_bytes = 0;

  Inbox(const ExpertPlacement& placement, const ExpertDispatchConfig& config, const Capabilities& capabilities) {
    const int64_t tokens = round_shape(placement, config).max_tokens, ranks = placement.num_ranks;
    for (DType dtype : capabilities.operand_dtypes)
      token_bytes = std::max(token_bytes, tokens * packed_row_bytes(dtype, config.hidden_size));
    choices_bytes = tokens * config.top_k * int64_t(sizeof(int32_t));
    const auto take = [&](int64_t bytes) {
      const int64_t begin = num_bytes;
      num_bytes += (bytes + 255) / 256 * 256;
      return begin;
    };
    x = take(ranks * token_bytes);
    expert_idx = take(ranks * choices_bytes);
    expert_weight = take(ranks * choices_bytes);
    slots = take(tokens * (config.deterministic ? config.top_k : ranks) * config.hidden_size * int64_t(sizeof(float)));
    flags = take(AllToAllSignals::kNumKinds * ranks * int64_t(sizeof(uint32_t)));
  }
};

class StoreDispatch final : public ExpertDispatch {
 public:
  StoreDispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement, const ExpertDispatchConfig& config)
      : comm_(comm),
        ops_(ops),
        all_to_all_(*ops.expert_all_to_all()),
        config_(config),
        rank_(comm.rank()),
        shape_(round_shape(placement, config)),
        tables_(upload_placement(placement, comm.rank(), ops.device())),
        rounds_(comm, shape_, config.max_tokens),
        buffers_(placement, config, ops),
        inbox_(placement, config, ops.capabilities()) {
    CHECK(placement.num_ranks == comm.size(), "a placement over {} ranks for a group of {}", placement.num_ranks,
          comm.size());
    memory_ = ops.device().alloc(inbox_.num_bytes);
    state_ = ops.device().alloc(2 * int64_t(sizeof(uint32_t)));
    inboxes_ = register_addressable(comm, memory_.get(), inbox_.num_bytes);
    for (std::byte* peer : inboxes_) flags_.push_back(reinterpret_cast<uint32_t*>(peer + inbox_.flags));
  }

  void begin_step(int64_t num_tokens) override {
    rounds_.begin_step(num_tokens);
    low_latency_ =
        config_.backend == All2AllBackend::kLowLatency ||
        (config_.backend == All2AllBackend::kAuto && rounds_.all_tokens() * config_.top_k <= kLowLatencyChoices);
  }
  int num_rounds() const override { return rounds_.num_rounds(); }

  Received dispatch(const Tokens& tokens, int round) override {
    check_tokens(tokens, rounds_.num_tokens(rank_), config_.top_k);
    tokens_ = tokens;
    const bool send_weights = tokens.scale_rows || !config_.deterministic;
    std::vector<MoeSource> sources;
    std::vector<DispatchInbox> inboxes;
    int64_t num_rows = 0;
    for (int r = 0; r < comm_.size(); ++r) {
      sources.push_back(source(r, round));
      inboxes.push_back(r == rank_ ? DispatchInbox{} : inbox_at(inboxes_[size_t(r)], rank_));
      if (!send_weights) inboxes.back().expert_weight = nullptr;
      num_rows += sources.back().expert_idx.dim(0) * shape_.rows_per_token;
    }
    const Received received = buffers_.received(tokens, num_rows);
    all_to_all_.dispatch({.signals = signals(),
                          .inboxes = inboxes,
                          .permute = {.sources = sources,
                                      .placement = tables_.view,
                                      .rank = rank_,
                                      .expert_offsets = received.expert_offsets,
                                      .x = received.x,
                                      .scale = received.scale},
                          .low_latency = low_latency_},
                         ops_.device().stream());
    results_ = received.out;
    return received;
  }

  void combine(const MoeCombineArgs& args, int round) override {
    const bool reduced = !config_.deterministic;
    const auto [begin, end] = rounds_.tokens_of(rank_, round);
    const int64_t slot_bytes = shape_.max_tokens * config_.hidden_size * dtype_bytes(results_.dtype);
    std::vector<CombineSource> sources;
    std::vector<const void*> slots;
    for (int r = 0; r < comm_.size(); ++r) {
      const MoeSource from = source(r, round);
      std::byte* at = inboxes_[size_t(r)] + inbox_.slots;
      sources.push_back({.row_of = {from.row_of.data, {from.expert_idx.dim(0), config_.top_k}},
                         .expert_weight = args.expert_weight ? from.expert_weight : View<const float>(),
                         .slots = reduced ? at + rank_ * slot_bytes : at});
      slots.push_back(memory_.get() + inbox_.slots + (reduced ? r * slot_bytes : 0));
    }
    const View<const void*> rows = buffers_.rows(end - begin, reduced ? comm_.size() : config_.top_k);
    all_to_all_.combine({.signals = signals(),
                         .placement = tables_.view,
                         .rank = rank_,
                         .expert_idx = rows_of(tokens_.expert_idx, begin, end),
                         .token_begin = begin,
                         .rows = results_,
                         .results = sources,
                         .reduced = reduced,
                         .slots = slots,
                         .expert_rows = rows},
                        ops_.device().stream());
    MoeCombineArgs part = combine_part(args, begin, end, rows, results_.dtype);
    if (reduced) part.expert_weight = {};
    ops_.moe_combine(part, ops_.device().stream());
  }

  View<const int32_t> logical_experts() const override { return tables_.logical_experts; }

 private:
  AllToAllSignals signals() const {
    return {.flags = flags_, .state = as<uint32_t>(state_), .wait = comm_.peer_wait(), .layer = tokens_.layer};
  }

  // Where rank `source` stores in an inbox.
  DispatchInbox inbox_at(std::byte* memory, int source) const {
    return {.x = memory + inbox_.x + source * inbox_.token_bytes,
            .expert_idx = reinterpret_cast<int32_t*>(memory + inbox_.expert_idx + source * inbox_.choices_bytes),
            .expert_weight = reinterpret_cast<float*>(memory + inbox_.expert_weight + source * inbox_.choices_bytes)};
  }

  // Tokens of a rank in a round, as this rank reads them.
  MoeSource source(int rank, int round) const {
    const auto [begin, end] = rounds_.tokens_of(rank, round);
    const int64_t n = end - begin, top_k = config_.top_k;
    MoeSource s = {.row_of = buffers_.row_of(rank).first(n * top_k), .token_begin = begin};
    if (rank == rank_) {
      s.x = tokens_.x;
      s.expert_idx = rows_of(tokens_.expert_idx, begin, end);
      s.expert_weight = rows_of(tokens_.expert_weight, begin, end);
    } else {
      const DispatchInbox in = inbox_at(memory_.get(), rank);
      s.packed = true;
      s.x = Operand(in.x, tokens_.x.dtype, {n, config_.hidden_size});
      s.expert_idx = View<const int32_t>(in.expert_idx, {n, top_k});
      s.expert_weight = View<const float>(in.expert_weight, {n, top_k});
    }
    return s;
  }

  Communicator& comm_;
  Ops& ops_;
  ExpertAllToAll& all_to_all_;
  const ExpertDispatchConfig config_;
  const int rank_;
  const RoundShape shape_;
  const PlacementTables tables_;
  Rounds rounds_;
  const ReceiveBuffers buffers_;
  const Inbox inbox_;
  Buffer memory_, state_;            // of the inbox; AllToAllSignals::state
  std::vector<std::byte*> inboxes_;  // by rank
  std::vector<uint32_t*> flags_;     // by rank
  bool low_latency_ = true;          // in this step
  Tokens tokens_;                    // being dispatched
  Operand results_;                  // Received::out of them
};

}  // namespace

int64_t store_dispatch_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                             const Capabilities& capabilities) {
  return Inbox(placement, config, capabilities).num_bytes;
}

std::unique_ptr<ExpertDispatch> make_store_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                    const ExpertDispatchConfig& config) {
  if (!ops.expert_all_to_all())
    throw Error(Code::kBadConfig, "--all2all-backend low_latency and high_throughput: this backend has naive only");
  return std::make_unique<StoreDispatch>(comm, ops, placement, config);
}

}  // namespace moectl
