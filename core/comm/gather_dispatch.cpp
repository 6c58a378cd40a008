// The naive form of ExpertDispatch for ranks that cannot address each other's memory: everything travels by collectives
// of Communicator. All ranks' tokens are gathered once per layer; each rank permutes those that its experts compute out
// of its own copy.
//
// Results come back one row per choice (deterministic): rank r sends each source a row for every choice of its tokens,
// of which those of r's experts count, and the source adds its choices in their order: the bits of one rank. Else one
// row per token and rank: each rank adds its experts' rows of every token, and a reduce-scatter adds the ranks' sums.
#include <algorithm>
#include <numeric>

#include "core/base/check.h"
#include "core/comm/dispatch_parts.h"

namespace moectl {
namespace {

// In bytes; of all ranks where more than one has a part.
struct Sizes {
  int64_t x = 0, choices = 0;  // of a step: tokens; expert indexes, and as much for weights
  int64_t send = 0, recv = 0;  // of a round: results
  int64_t table = 0;           // of indexes, or of pointers

  Sizes(const ExpertPlacement& placement, const ExpertDispatchConfig& config, const Capabilities& capabilities) {
    const int64_t ranks = placement.num_ranks, tokens = round_shape(placement, config).max_tokens;
    const int64_t row = config.hidden_size * int64_t(sizeof(float)), num_choices = tokens * config.top_k;
    for (DType dtype : capabilities.operand_dtypes)
      x = std::max(x, ranks * Operand::num_bytes(dtype, config.max_tokens, config.hidden_size));
    choices = ranks * config.max_tokens * config.top_k * int64_t(sizeof(int32_t));
    send = ranks * (config.deterministic ? num_choices : tokens) * row;
    recv = config.deterministic ? send : tokens * row;
    table = num_choices * int64_t(sizeof(int32_t)) + tokens * int64_t(sizeof(void*));
  }
};

class GatherDispatch final : public ExpertDispatch {
 public:
  GatherDispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement, const ExpertDispatchConfig& config)
      : comm_(comm),
        ops_(ops),
        config_(config),
        rank_(comm.rank()),
        rows_per_token_(round_shape(placement, config).rows_per_token),
        max_rows_(max_rows(placement, config)),
        tables_(upload_placement(placement, comm.rank(), ops.device())),
        rounds_(comm, round_shape(placement, config), config.max_tokens),
        buffers_(placement, config, ops) {
    CHECK(placement.num_ranks == comm.size(), "a placement over {} ranks for a group of {}", placement.num_ranks,
          comm.size());
    const Sizes sizes(placement, config, ops.capabilities());
    Device& device = ops.device();
    const auto registered = [&](int64_t num_bytes) {
      Buffer buffer = device.alloc(num_bytes);
      comm.register_buffer(buffer.get(), num_bytes);
      return buffer;
    };
    x_ = registered(sizes.x);
    expert_idx_ = registered(sizes.choices);
    expert_weight_ = registered(sizes.choices);
    send_ = registered(sizes.send);
    recv_ = registered(sizes.recv);
    fill_tables(round_shape(placement, config).max_tokens);
  }

  void begin_step(int64_t num_tokens) override { rounds_.begin_step(num_tokens); }
  int num_rounds() const override { return rounds_.num_rounds(); }

  Received dispatch(const Tokens& tokens, int round) override {
    check_tokens(tokens, rounds_.num_tokens(rank_), config_.top_k);
    if (round == 0) gather(tokens);
    tokens_ = tokens;
    std::vector<MoeSource> sources;
    int64_t num_rows = 0;
    for (int r = 0; r < comm_.size(); ++r) {
      sources.push_back(source(r, round));
      num_rows += sources.back().expert_idx.dim(0) * rows_per_token_;
    }
    const Received received = buffers_.received(tokens, num_rows);
    results_ = received.out;
    ops_.moe_permute({.sources = sources,
                      .placement = tables_.view,
                      .rank = rank_,
                      .expert_offsets = received.expert_offsets,
                      .x = received.x,
                      .scale = received.scale},
                     stream());
    return received;
  }

  void combine(const MoeCombineArgs& args, int round) override {
    if (config_.deterministic)
      combine_choices(args, round);
    else
      combine_sums(args, round);
  }

  View<const int32_t> logical_experts() const override { return tables_.logical_experts; }

 private:
  Stream stream() const { return ops_.device().stream(); }
  int64_t row_bytes(DType dtype) const { return config_.hidden_size * dtype_bytes(dtype); }
  // Tokens of a step, or of a round, on the rank that has the most: what a collective moves for each rank.
  int64_t most_tokens(int round = -1) const {
    int64_t most = 0;
    for (int r = 0; r < comm_.size(); ++r) {
      const auto [begin, end] = rounds_.tokens_of(r, std::max(round, 0));
      most = std::max(most, round < 0 ? rounds_.num_tokens(r) : end - begin);
    }
    return most;
  }

  // [number of choices of a round] 0, 1, 2, ..., and where the sums of a round's tokens are.
  void fill_tables(int64_t max_tokens) {
    const int64_t num = max_tokens * config_.top_k;
    std::vector<int32_t> indexes(static_cast<size_t>(num));
    std::iota(indexes.begin(), indexes.end(), 0);
    std::vector<const void*> sums;
    for (int64_t t = 0; t < max_tokens; ++t) sums.push_back(recv_.get() + t * row_bytes(DType::kF32));
    Device& device = ops_.device();
    const auto uploaded = [&](const auto& values) {
      const auto num_bytes = int64_t(values.size() * sizeof(values[0]));
      Buffer buffer = device.alloc(num_bytes);
      device.upload(buffer.get(), values.data(), num_bytes);
      return buffer;
    };
    indexes_ = uploaded(indexes);
    sums_ = uploaded(sums);
    zeros_ = device.alloc(num * int64_t(sizeof(int32_t)));
  }

  // What a rank's own buffers hold beyond its tokens is sent too, where a peer has more.
  void gather(const Tokens& tokens) {
    const int64_t most = most_tokens(), choices = most * config_.top_k * int64_t(sizeof(int32_t));
    const int64_t max_choices = int64_t{config_.max_tokens} * config_.top_k * int64_t(sizeof(int32_t));
    const auto all_gather = [&](const void* data, int64_t buffer_bytes, const Buffer& to, int64_t num_bytes) {
      register_once(data, buffer_bytes);
      comm_.all_gather(data, to.get(), num_bytes, stream());
    };
    x_bytes_ = Operand::num_bytes(tokens.x.dtype, most, config_.hidden_size);
    all_gather(tokens.x.data, Operand::num_bytes(tokens.x.dtype, config_.max_tokens, config_.hidden_size), x_,
               x_bytes_);
    all_gather(tokens.expert_idx.data, max_choices, expert_idx_, choices);
    if (tokens.scale_rows || !config_.deterministic)
      all_gather(tokens.expert_weight.data, max_choices, expert_weight_, choices);
  }

  // The tokens of rank `r` in this rank's copy.
  MoeSource source(int r, int round) const {
    const auto [begin, end] = rounds_.tokens_of(r, round);
    const int64_t first = (r * most_tokens() + begin) * config_.top_k, num = end - begin;
    MoeSource source;
    source.x = Operand(x_.get() + r * x_bytes_, tokens_.x.dtype, {rounds_.num_tokens(r), config_.hidden_size});
    source.expert_idx = {as<int32_t>(expert_idx_) + first, {num, config_.top_k}};
    source.expert_weight = {as<float>(expert_weight_) + first, {num, config_.top_k}};
    source.row_of = buffers_.row_of(r).first(num * config_.top_k);
    source.token_begin = begin;
    return source;
  }

  // Where the rows of a source's choices are, by the rank that computes them.
  View<const void*> locate(const MoeSource& source, int source_rank, std::span<const MoeResults> results,
                           DType dtype) const {
    const View<const void*> rows = buffers_.rows(source.expert_idx.dim(0), config_.top_k);
    ops_.moe_locate({.expert_idx = source.expert_idx,
                     .results = results,
                     .placement = tables_.view,
                     .rank = source_rank,
                     .token_begin = source.token_begin,
                     .row_bytes = row_bytes(dtype),
                     .expert_rows = rows},
                    stream());
    return rows;
  }

  // row_of of a choice that is another rank's holds a row of an earlier round, or 0: a row that nobody reads is copied.
  void combine_choices(const MoeCombineArgs& args, int round) {
    const int64_t num_bytes = most_tokens(round) * config_.top_k * row_bytes(results_.dtype);
    const Operand rows = results_.first(max_rows_);
    std::vector<MoeResults> results;
    for (int r = 0; r < comm_.size(); ++r) {
      const View<int32_t> row_of = source(r, round).row_of;
      ops_.gather({.x = rows,
                   .row_idx = View<const int32_t>(row_of.data, {row_of.size()}),
                   .out = Operand(send_.get() + r * num_bytes, rows.dtype, {row_of.size(), config_.hidden_size})},
                  stream());
      results.push_back({recv_.get() + r * num_bytes, as<int32_t>(indexes_)});
    }
    comm_.all_to_all(send_.get(), recv_.get(), num_bytes, stream());
    const auto [begin, end] = rounds_.tokens_of(rank_, round);
    const View<const void*> located = locate(source(rank_, round), rank_, results, rows.dtype);
    ops_.moe_combine(combine_part(args, begin, end, located, rows.dtype), stream());
  }

  void combine_sums(const MoeCombineArgs& args, int round) {
    const int64_t most = most_tokens(round), hidden_size = config_.hidden_size;
    float* send = as<float>(send_);
    for (int r = 0; r < comm_.size(); ++r) {
      const MoeSource from = source(r, round);
      std::vector<MoeResults> results(static_cast<size_t>(comm_.size()), {nullptr, as<int32_t>(zeros_)});
      results[size_t(rank_)] = {results_.data, from.row_of.data};
      const View<const void*> located = locate(from, r, results, results_.dtype);
      ops_.moe_combine({.expert_rows = View<const void* const>(located.data, {located.dim(0), located.dim(1)}),
                        .rows_dtype = results_.dtype,
                        .expert_weight = args.expert_weight ? from.expert_weight : View<const float>(),
                        .out = View<float>(send + r * most * hidden_size, {located.dim(0), hidden_size})},
                       stream());
    }
    comm_.reduce_scatter(View<const float>(send, {comm_.size(), most * hidden_size}),
                         View<float>(as<float>(recv_), {most * hidden_size}), stream());
    const auto [begin, end] = rounds_.tokens_of(rank_, round);
    MoeCombineArgs part = combine_part(args, begin, end, {as<const void*>(sums_), {end - begin, 1}}, DType::kF32);
    part.expert_weight = {};  // the sums are weighted
    ops_.moe_combine(part, stream());
  }

  // A buffer is registered when it is first dispatched from, which is in the same call on every rank.
  void register_once(const void* mine, int64_t num_bytes) {
    if (std::ranges::find(registered_, mine) != registered_.end()) return;
    registered_.push_back(mine);
    comm_.register_buffer(const_cast<void*>(mine), num_bytes);
  }

  Communicator& comm_;
  Ops& ops_;
  const ExpertDispatchConfig config_;
  const int rank_;
  const int64_t rows_per_token_, max_rows_;
  const PlacementTables tables_;
  Rounds rounds_;
  const ReceiveBuffers buffers_;
  Buffer x_, expert_idx_, expert_weight_;  // [number of ranks, the most tokens of a rank in this step, ...]
  Buffer send_, recv_;                     // [number of ranks, the most tokens in this round, top_k or 1, hidden_size]
  Buffer indexes_, zeros_, sums_;
  std::vector<const void*> registered_;
  int64_t x_bytes_ = 0;  // of one rank in x_
  Tokens tokens_;        // that are being dispatched
  Operand results_;
};

}  // namespace

int64_t gather_dispatch_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                              const Capabilities& capabilities) {
  const Sizes s(placement, config, capabilities);
  return s.x + 2 * s.choices + s.send + s.recv + 2 * s.table;
}

std::unique_ptr<ExpertDispatch> make_gather_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                     const ExpertDispatchConfig& config) {
  return std::make_unique<GatherDispatch>(comm, ops, placement, config);
}

}  // namespace moectl
