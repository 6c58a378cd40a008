#include "core/comm/expert_exchange.h"

#include <algorithm>

#include "core/base/check.h"

namespace moectl {
namespace {

// The worst case: every token of every rank chooses as many local experts as it can.
int64_t max_rows(int64_t size, int64_t num_experts, int64_t top_k, int64_t max_tokens) {
  return size * max_tokens * std::min(top_k, num_experts / size);
}

template <class T>
T* as(const Buffer& buffer) {
  return reinterpret_cast<T*>(buffer.get());
}

}  // namespace

int64_t ExpertExchange::num_bytes(int size, int num_experts, int top_k, int hidden_size, int max_tokens) {
  const int64_t rows = max_rows(size, num_experts, top_k, max_tokens), choices = int64_t{max_tokens} * top_k;
  return rows * (2 * hidden_size + 1) * 4 + (num_experts / size + 1) * 4 + size * choices * 4 + choices * 8;
}

ExpertExchange::ExpertExchange(Communicator& comm, Ops& ops, int num_experts, int top_k, int hidden_size,
                               int max_tokens)
    : comm_(comm),
      ops_(ops),
      num_experts_(num_experts),
      top_k_(top_k),
      hidden_size_(hidden_size),
      max_tokens_(max_tokens) {
  const int size = comm.size();
  CHECK(num_experts % size == 0, "{} experts over {} ranks", num_experts, size);
  num_local_experts_ = num_experts / size;
  expert_begin_ = num_local_experts_ * comm.rank();
  const int64_t rows = max_rows(size, num_experts, top_k, max_tokens), choices = int64_t{max_tokens} * top_k;
  x_ = ops.alloc(rows * hidden_size * int64_t(sizeof(float)));
  out_ = ops.alloc(rows * hidden_size * int64_t(sizeof(float)));
  scale_ = ops.alloc(rows * int64_t(sizeof(float)));
  offsets_ = ops.alloc((num_local_experts_ + 1) * int64_t(sizeof(int32_t)));
  row_of_ = ops.alloc(size * choices * int64_t(sizeof(int32_t)));
  rows_ = ops.alloc(choices * int64_t(sizeof(float*)));
  mine_.out = as<float>(out_);
  for (int source = 0; source < size; ++source) mine_.row_of.push_back(as<int32_t>(row_of_) + source * choices);
  for (const void* p : comm.all_gather(&mine_)) peers_.push_back(static_cast<const Shared*>(p));
  for (const Shared* peer : peers_) owners_.push_back({peer->out, peer->row_of[size_t(comm.rank())]});
}

// Peers read what this rank's stream has written: it must be there before they are told.
void ExpertExchange::meet() {
  if (comm_.size() == 1) return;
  ops_.synchronize(ops_.stream());
  comm_.barrier();
}

ExpertExchange::Received ExpertExchange::dispatch(View<const float> x, View<const int32_t> expert_idx,
                                                  View<const float> expert_weight, const MoeExpertsArgs* for_experts) {
  CHECK(x.dim(0) <= max_tokens_, "{} tokens in an exchange for {}", x.dim(0), max_tokens_);
  mine_.x = x;
  mine_.expert_idx = expert_idx;
  mine_.expert_weight = expert_weight;
  meet();

  int64_t num_rows = 0;
  sources_.clear();
  for (size_t source = 0; source < peers_.size(); ++source) {
    const Shared& peer = *peers_[source];
    sources_.push_back(
        {peer.x, peer.expert_idx, peer.expert_weight, View<int32_t>(mine_.row_of[source], {peer.expert_idx.size()})});
    num_rows += peer.x.dim(0) * std::min<int64_t>(top_k_, num_local_experts_);
  }
  const View<float> rows(as<float>(x_), {num_rows, hidden_size_}), out(as<float>(out_), {num_rows, hidden_size_});
  const View<float> scale = expert_weight ? View<float>(as<float>(scale_), {num_rows}) : View<float>();
  const View<int32_t> offsets(as<int32_t>(offsets_), {num_local_experts_ + 1});
  ops_.moe_permute({sources_, expert_begin_, offsets, rows, scale, for_experts}, ops_.stream());
  return {rows, offsets, out, scale};
}

View<const float* const> ExpertExchange::collect() {
  meet();
  const View<const float*> rows(as<const float*>(rows_), {mine_.expert_idx.dim(0), top_k_});
  ops_.moe_locate({mine_.expert_idx, owners_, num_local_experts_, hidden_size_, rows}, ops_.stream());
  return View<const float* const>(rows.data, {rows.dim(0), top_k_});
}

}  // namespace moectl
