#include "core/comm/dispatch_parts.h"

#include <algorithm>
#include <numeric>

#include "core/base/check.h"

namespace moectl {

RoundShape round_shape(const ExpertPlacement& placement, const ExpertDispatchConfig& config) {
  const int64_t rows_per_token = std::min(config.top_k, placement.num_local());
  int64_t bound = config.max_received_rows;
  if (bound == 0 && placement.num_ranks == 1) return {config.max_tokens, rows_per_token};
  if (bound == 0) bound = kDefaultReceiveBytes / (2 * int64_t(sizeof(float)) * config.hidden_size);
  return {std::clamp<int64_t>(bound / (placement.num_ranks * rows_per_token), 1, std::max(config.max_tokens, 1)),
          rows_per_token};
}

// ------------------------------------------------------------------------------------------------ rounds

void Rounds::begin_step(int64_t num_tokens) {
  CHECK(num_tokens <= max_tokens_, "{} tokens in a dispatch for {}", num_tokens, max_tokens_);
  num_tokens_ = comm_.size() == 1 ? std::vector<int64_t>{num_tokens} : comm_.all_gather_host(num_tokens);
  const int64_t most = std::ranges::max(num_tokens_), per_round = std::max<int64_t>(shape_.max_tokens, 1);
  num_rounds_ = int(std::max<int64_t>(1, (most + per_round - 1) / per_round));
}

int64_t Rounds::all_tokens() const {
  return std::accumulate(num_tokens_.begin(), num_tokens_.end(), int64_t{0});
}

std::pair<int64_t, int64_t> Rounds::tokens_of(int rank, int round) const {
  const int64_t n = num_tokens_[size_t(rank)];
  return {std::min(round * shape_.max_tokens, n), std::min((round + 1) * shape_.max_tokens, n)};
}

// ------------------------------------------------------------------------------------------------ buffers

// In bytes.
struct ReceiveBuffers::Sizes {
  int64_t x = 0, out = 0, scale = 0, offsets = 0, row_of = 0, rows = 0;
};

ReceiveBuffers::Sizes ReceiveBuffers::sizes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                                            const Capabilities& capabilities) {
  const int64_t max_rows = ExpertDispatch::max_rows(placement, config);
  const int64_t tokens = round_shape(placement, config).max_tokens, word = sizeof(int32_t);
  Sizes s = {.out = max_rows * config.hidden_size * word,
             .scale = max_rows * word,
             .offsets = (placement.num_local() + 1) * word,
             .row_of = placement.num_ranks * tokens * config.top_k * word,
             .rows = tokens * std::max(config.top_k, placement.num_ranks) * int64_t(sizeof(void*))};
  for (DType dtype : capabilities.operand_dtypes)  // one of them at a time
    s.x = std::max(s.x, Operand::num_bytes(dtype, max_rows, config.hidden_size));
  return s;
}

int64_t ReceiveBuffers::num_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                                  const Capabilities& capabilities) {
  const Sizes s = sizes(placement, config, capabilities);
  return s.x + s.out + s.scale + s.offsets + s.row_of + s.rows;
}

ReceiveBuffers::ReceiveBuffers(const ExpertPlacement& placement, const ExpertDispatchConfig& config, Ops& ops)
    : num_local_(placement.num_local()),
      hidden_size_(config.hidden_size),
      choices_per_source_(round_shape(placement, config).max_tokens * config.top_k) {
  const Sizes s = sizes(placement, config, ops.capabilities());
  Device& device = ops.device();
  x_ = device.alloc(s.x);
  out = device.alloc(s.out);
  scale_ = device.alloc(s.scale);
  offsets_ = device.alloc(s.offsets);
  all_row_of = device.alloc(s.row_of);
  rows_ = device.alloc(s.rows);
}

ExpertDispatch::Received ReceiveBuffers::received(const ExpertDispatch::Tokens& tokens, int64_t num_rows) const {
  return {.x = Operand(x_.get(), tokens.x.dtype, {num_rows, hidden_size_}),
          .expert_offsets = View<int32_t>(as<int32_t>(offsets_), {num_local_ + 1}),
          .out = Operand(out.get(), tokens.results, {num_rows, hidden_size_}),
          .scale = tokens.scale_rows ? View<float>(as<float>(scale_), {num_rows}) : View<float>()};
}

View<int32_t> ReceiveBuffers::row_of(int source) const {
  return {as<int32_t>(all_row_of) + source * choices_per_source_, {choices_per_source_}};
}

View<const void*> ReceiveBuffers::rows(int64_t num_tokens, int64_t per_token) const {
  return {as<const void*>(rows_), {num_tokens, per_token}};
}

MoeCombineArgs combine_part(const MoeCombineArgs& args, int64_t begin, int64_t end, const View<const void*>& rows,
                            DType rows_dtype) {
  MoeCombineArgs part = args;
  part.expert_rows = View<const void* const>(rows.data, {rows.dim(0), rows.dim(1)});
  part.rows_dtype = rows_dtype;
  part.expert_weight = rows_of(args.expert_weight, begin, end);
  part.shared = rows_of(args.shared, begin, end);
  part.shared_gate = rows_of(args.shared_gate, begin, end);
  part.out = rows_of(args.out, begin, end);
  return part;
}

std::vector<std::byte*> register_addressable(Communicator& comm, void* data, int64_t num_bytes) {
  std::vector<std::byte*> peers = comm.register_buffer(data, num_bytes);
  for (size_t r = 0; r < peers.size(); ++r)
    CHECK(peers[r], "rank {} cannot address the memory of rank {} (ExpertDispatchConfig::peers_addressable)",
          comm.rank(), r);
  return peers;
}

void check_tokens(const ExpertDispatch::Tokens& tokens, int64_t num_tokens, int top_k) {
  CHECK(tokens.x.dim(0) == num_tokens && tokens.expert_idx.size() == num_tokens * top_k &&
            tokens.expert_weight.size() == num_tokens * top_k,
        "{} tokens with {} choices and {} weights in a step of {} tokens, top-{}", tokens.x.dim(0),
        tokens.expert_idx.size(), tokens.expert_weight.size(), num_tokens, top_k);
}

}  // namespace moectl
