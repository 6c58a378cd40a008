#include "core/comm/expert_exchange.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"

namespace moectl {

ExpertExchange::ExpertExchange(Communicator& comm, Ops& ops, int num_experts, int top_k, int hidden_size,
                               int max_tokens)
    : comm_(comm), num_experts_(num_experts), top_k_(top_k), hidden_size_(hidden_size), max_tokens_(max_tokens) {
  const int size = comm.size();
  CHECK(num_experts % size == 0, "{} experts over {} ranks", num_experts, size);
  num_local_experts_ = num_experts / size;
  expert_begin_ = num_local_experts_ * comm.rank();
  // The worst case: every token of every rank chooses as many local experts as it can.
  const int64_t max_rows = int64_t{size} * max_tokens * std::min<int64_t>(top_k, num_local_experts_);
  x_ = ops.alloc(max_rows * hidden_size * int64_t(sizeof(float)));
  out_ = ops.alloc(max_rows * hidden_size * int64_t(sizeof(float)));
  scale_ = ops.alloc(max_rows * int64_t(sizeof(float)));
  mine_.out = reinterpret_cast<float*>(out_.get());
  mine_.row_of.assign(size_t(size), std::vector<int32_t>(size_t(max_tokens) * size_t(top_k)));
  offsets_.resize(size_t(num_local_experts_) + 1);
  next_.resize(size_t(num_local_experts_));
  rows_.resize(size_t(max_tokens) * size_t(top_k));
  for (const void* p : comm.all_gather(&mine_)) peers_.push_back(static_cast<const Shared*>(p));
}

ExpertExchange::Received ExpertExchange::dispatch(View<const float> x, View<const int32_t> expert_idx,
                                                  View<const float> expert_weight) {
  CHECK(x.dim(0) <= max_tokens_, "{} tokens in an exchange for {}", x.dim(0), max_tokens_);
  mine_.x = x;
  mine_.expert_idx = expert_idx;
  mine_.expert_weight = expert_weight;
  comm_.barrier();

  auto local = [&](int32_t expert) {  // index among this rank's experts, or -1
    int64_t e = expert - expert_begin_;
    return e >= 0 && e < num_local_experts_ ? e : -1;
  };
  std::fill(offsets_.begin(), offsets_.end(), 0);
  for (const Shared* peer : peers_)
    for (int64_t i = 0; i < peer->expert_idx.size(); ++i)
      if (int64_t e = local(peer->expert_idx.data[i]); e >= 0) ++offsets_[size_t(e) + 1];
  for (size_t e = 0; e < next_.size(); ++e) {
    offsets_[e + 1] += offsets_[e];
    next_[e] = offsets_[e];
  }
  float *rows = reinterpret_cast<float*>(x_.get()), *scale = reinterpret_cast<float*>(scale_.get());
  for (size_t source = 0; source < peers_.size(); ++source) {
    const Shared& peer = *peers_[source];
    for (int64_t i = 0; i < peer.expert_idx.size(); ++i) {
      int64_t e = local(peer.expert_idx.data[i]);
      if (e < 0) continue;
      int32_t row = next_[size_t(e)]++;
      mine_.row_of[source][size_t(i)] = row;
      if (peer.expert_weight) scale[row] = peer.expert_weight.data[i];
      std::memcpy(rows + int64_t{row} * hidden_size_, peer.x.row(i / top_k_), size_t(hidden_size_) * sizeof(float));
    }
  }
  const int64_t num_rows = std::max<int64_t>(offsets_.back(), 1);
  return {.x = View<const float>(rows, {num_rows, hidden_size_}),
          .expert_offsets = View<const int32_t>(offsets_.data(), {num_local_experts_ + 1}),
          .out = View<float>(reinterpret_cast<float*>(out_.get()), {num_rows, hidden_size_}),
          .scale = expert_weight ? View<const float>(scale, {num_rows}) : View<const float>()};
}

View<const float* const> ExpertExchange::collect() {
  comm_.barrier();
  const View<const int32_t>& idx = mine_.expert_idx;
  for (int64_t i = 0; i < idx.size(); ++i) {
    const Shared& owner = *peers_[size_t(idx.data[i] / num_local_experts_)];
    rows_[size_t(i)] = owner.out + int64_t{owner.row_of[size_t(comm_.rank())][size_t(i)]} * hidden_size_;
  }
  return View<const float* const>(rows_.data(), {idx.dim(0), top_k_});
}

}  // namespace moectl
