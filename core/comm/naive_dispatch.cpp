// The naive form of ExpertDispatch: peers' memory is read in place.
#include <algorithm>

#include "core/base/check.h"
#include "core/comm/expert_dispatch.h"

namespace moectl {
namespace {

// Of one source rank: the tokens of a round, and the rows that one of them sends to one rank at most.
struct RoundShape {
  int64_t max_tokens = 0, rows_per_token = 0;
};

RoundShape round_shape(const ExpertPlacement& placement, const ExpertDispatchConfig& config) {
  const int64_t rows_per_token = std::min(config.top_k, placement.num_local());
  int64_t bound = config.max_received_rows;
  if (bound == 0 && placement.num_ranks == 1) return {config.max_tokens, rows_per_token};
  if (bound == 0) bound = kDefaultReceiveBytes / (2 * int64_t(sizeof(float)) * config.hidden_size);
  return {std::clamp<int64_t>(bound / (placement.num_ranks * rows_per_token), 1, std::max(config.max_tokens, 1)),
          rows_per_token};
}

// Elements of each buffer.
struct BufferSizes {
  int64_t x_bytes = 0, out = 0, scale = 0, offsets = 0, row_of = 0, rows = 0;
};

BufferSizes buffer_sizes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                         const Capabilities& capabilities) {
  const int64_t max_rows = ExpertDispatch::max_rows(placement, config);
  const int64_t choices = round_shape(placement, config).max_tokens * config.top_k;
  BufferSizes sizes = {.out = max_rows * config.hidden_size,
                       .scale = max_rows,
                       .offsets = placement.num_local() + 1,
                       .row_of = placement.num_ranks * choices,
                       .rows = choices};
  for (DType dtype : capabilities.operand_dtypes)  // one of them at a time
    sizes.x_bytes = std::max(sizes.x_bytes, Operand::num_bytes(dtype, max_rows, config.hidden_size));
  return sizes;
}

template <class T>
T* as(const Buffer& buffer) {
  return reinterpret_cast<T*>(buffer.get());
}

template <class T>
View<T> rows_of(const View<T>& view, int64_t begin, int64_t end) {
  if (!view) return view;
  View<T> part = view.first(end - begin);
  part.data = view.row(begin);
  return part;
}

class NaiveDispatch final : public ExpertDispatch {
 public:
  NaiveDispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement, const ExpertDispatchConfig& config)
      : comm_(comm),
        ops_(ops),
        config_(config),
        rank_(comm.rank()),
        num_local_(placement.num_local()),
        shape_(round_shape(placement, config)),
        tables_(upload_placement(placement, comm.rank(), ops.device())) {
    CHECK(placement.num_ranks == comm.size(), "a placement over {} ranks for a group of {}", placement.num_ranks,
          comm.size());
    const BufferSizes sizes = buffer_sizes(placement, config, ops.capabilities());
    Device& device = ops.device();
    x_ = device.alloc(sizes.x_bytes);
    out_ = device.alloc(sizes.out * int64_t(sizeof(float)));
    scale_ = device.alloc(sizes.scale * int64_t(sizeof(float)));
    offsets_ = device.alloc(sizes.offsets * int64_t(sizeof(int32_t)));
    row_of_ = device.alloc(sizes.row_of * int64_t(sizeof(int32_t)));
    rows_ = device.alloc(sizes.rows * int64_t(sizeof(void*)));
    register_once(out_.get(), sizes.out * int64_t(sizeof(float)));
    register_once(row_of_.get(), sizes.row_of * int64_t(sizeof(int32_t)));
    for (int r = 0; r < comm.size(); ++r)
      results_.push_back({peer(out_.get(), r), peer(as<int32_t>(row_of_), r) + rank_ * choices_per_source()});
    num_tokens_.resize(size_t(comm.size()));
  }

  void begin_step(int64_t num_tokens) override {
    CHECK(num_tokens <= config_.max_tokens, "{} tokens in a dispatch for {}", num_tokens, config_.max_tokens);
    num_tokens_ = comm_.size() == 1 ? std::vector<int64_t>{num_tokens} : comm_.all_gather_host(num_tokens);
    const int64_t most = std::ranges::max(num_tokens_);
    num_rounds_ = int(std::max<int64_t>(1, (most + shape_.max_tokens - 1) / std::max<int64_t>(shape_.max_tokens, 1)));
  }
  int num_rounds() const override { return num_rounds_; }

  // A barrier before: peers' tokens are there, and they have read the results of the round before, which the experts
  // are about to overwrite.
  Received dispatch(const Tokens& tokens, int round) override {
    const int64_t n = num_tokens_[size_t(rank_)];
    CHECK(tokens.x.dim(0) == n && tokens.expert_idx.size() == n * config_.top_k,
          "{} tokens with {} choices in a step of {} tokens, top-{}", tokens.x.dim(0), tokens.expert_idx.size(), n,
          config_.top_k);
    expert_idx_ = tokens.expert_idx;
    results_dtype_ = tokens.results;
    const int64_t max_choices = int64_t{config_.max_tokens} * config_.top_k;
    register_once(tokens.x.data, Operand::num_bytes(tokens.x.dtype, config_.max_tokens, config_.hidden_size));
    register_once(tokens.expert_idx.data, max_choices * int64_t(sizeof(int32_t)));
    if (tokens.expert_weight) register_once(tokens.expert_weight.data, max_choices * int64_t(sizeof(float)));
    barrier();
    sources_.clear();
    int64_t num_rows = 0;
    for (int r = 0; r < comm_.size(); ++r) {
      const auto [begin, end] = tokens_of(r, round);
      const auto choices = [&, first = begin, num = end - begin](auto view) {
        return decltype(view)(peer(view.data, r) + first * config_.top_k, {num, config_.top_k});
      };
      MoeSource source;
      source.x = Operand(peer(tokens.x.data, r), tokens.x.dtype, {num_tokens_[size_t(r)], config_.hidden_size});
      source.expert_idx = choices(tokens.expert_idx);
      if (tokens.expert_weight) source.expert_weight = choices(tokens.expert_weight);
      source.row_of = {as<int32_t>(row_of_) + r * choices_per_source(), {(end - begin) * config_.top_k}};
      source.token_begin = begin;
      sources_.push_back(source);
      num_rows += (end - begin) * shape_.rows_per_token;
    }
    const Operand rows(x_.get(), tokens.x.dtype, {num_rows, config_.hidden_size});
    const View<int32_t> offsets(as<int32_t>(offsets_), {num_local_ + 1});
    const View<float> scale = tokens.expert_weight ? View<float>(as<float>(scale_), {num_rows}) : View<float>();
    ops_.moe_permute({.sources = sources_,
                      .placement = tables_.view,
                      .rank = rank_,
                      .expert_offsets = offsets,
                      .x = rows,
                      .scale = scale},
                     ops_.device().stream());
    return {rows, offsets, Operand(out_.get(), tokens.results, {num_rows, config_.hidden_size}), scale};
  }

  // A barrier before: peers' results are there.
  void combine(const MoeCombineArgs& args, int round) override {
    barrier();
    const auto [begin, end] = tokens_of(rank_, round);
    const View<const void*> rows(as<const void*>(rows_), {end - begin, config_.top_k});
    ops_.moe_locate({.expert_idx = rows_of(expert_idx_, begin, end),
                     .results = results_,
                     .placement = tables_.view,
                     .rank = rank_,
                     .token_begin = begin,
                     .row_bytes = config_.hidden_size * dtype_bytes(results_dtype_),
                     .expert_rows = rows},
                    ops_.device().stream());
    MoeCombineArgs part = args;
    part.rows_dtype = results_dtype_;
    part.expert_rows = View<const void* const>(rows.data, {end - begin, config_.top_k});
    part.expert_weight = rows_of(args.expert_weight, begin, end);
    part.shared = rows_of(args.shared, begin, end);
    part.shared_gate = rows_of(args.shared_gate, begin, end);
    part.out = rows_of(args.out, begin, end);
    ops_.moe_combine(part, ops_.device().stream());
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
  int64_t choices_per_source() const { return shape_.max_tokens * config_.top_k; }
  std::pair<int64_t, int64_t> tokens_of(int rank, int round) const {
    const int64_t n = num_tokens_[size_t(rank)];
    return {std::min(round * shape_.max_tokens, n), std::min((round + 1) * shape_.max_tokens, n)};
  }

  // A buffer is registered when it is first dispatched from, which is in the same call on every rank: they run the same
  // layers, each with its buffers at the same addresses in every step.
  void register_once(const void* mine, int64_t num_bytes) {
    if (comm_.size() == 1 || find(mine)) return;
    auto* data = const_cast<std::byte*>(static_cast<const std::byte*>(mine));
    registered_.push_back({mine, comm_.register_buffer(data, num_bytes)});
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
  const int64_t num_local_;
  const RoundShape shape_;
  const PlacementTables tables_;
  Buffer x_, out_, scale_, offsets_;
  Buffer row_of_;  // [source rank, tokens of a round, top_k]: MoeSource::row_of
  Buffer rows_;    // [tokens of a round, top_k]: MoeLocateArgs::expert_rows
  std::vector<Registered> registered_;
  std::vector<MoeResults> results_;  // by rank, for this rank's tokens
  std::vector<MoeSource> sources_;
  std::vector<int64_t> num_tokens_;  // of each rank in this step
  int num_rounds_ = 1;
  View<const int32_t> expert_idx_;  // of the tokens that are being dispatched
  DType results_dtype_ = DType::kF32;
};

}  // namespace

int64_t ExpertDispatch::max_rows(const ExpertPlacement& placement, const ExpertDispatchConfig& config) {
  const RoundShape shape = round_shape(placement, config);
  return placement.num_ranks * shape.max_tokens * shape.rows_per_token;
}

int64_t ExpertDispatch::num_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                                  const Capabilities& capabilities) {
  const BufferSizes s = buffer_sizes(placement, config, capabilities);
  return s.x_bytes + (s.out + s.scale + s.offsets + s.row_of) * 4 + s.rows * int64_t(sizeof(void*)) +
         placement_bytes(placement);
}

std::unique_ptr<ExpertDispatch> make_expert_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                     const ExpertDispatchConfig& config) {
  return std::make_unique<NaiveDispatch>(comm, ops, placement, config);
}

}  // namespace moectl
