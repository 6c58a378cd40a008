// AllToAllRank: one rank's side of an expert all-to-all between threads, as an ExpertDispatch uses it: its buffers, its
// tokens, experts that are cheap to compute, and what combine() must give. Tokens and results are functions of a seed,
// so every comparison is exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/expert_all_to_all.h"
#include "tests/harness/placement.h"

namespace moectl::test {

struct AllToAllShape {
  int64_t num_ranks = 1, num_experts = 1, top_k = 1, hidden = 1, max_tokens = 0;
  bool reduced = false;  // CombineArgs::reduced
  bool scaled = false;   // experts multiply by the tokens' weights, and combine does not
};

inline float result_of_expert(int32_t expert, float x) {
  return x * float(expert + 1) + 0.25f;
}

// What peers store into one rank's memory.
struct AllToAllMemory {
  std::vector<std::byte> x;          // [source rank, max_tokens, packed_row_bytes]
  std::vector<int32_t> expert_idx;   // [source rank, max_tokens, top_k]
  std::vector<float> expert_weight;  // likewise
  std::vector<float> slots;          // [max_tokens, top_k, hidden]; reduced: [rank, max_tokens, hidden]
  std::vector<uint32_t> flags;       // [kNumKinds, rank]

  explicit AllToAllMemory(const AllToAllShape& s)
      : x(size_t(s.num_ranks * s.max_tokens * packed_row_bytes(DType::kF32, s.hidden))),
        expert_idx(size_t(s.num_ranks * s.max_tokens * s.top_k)),
        expert_weight(expert_idx.size()),
        slots(size_t((s.reduced ? s.num_ranks : s.top_k) * s.max_tokens * s.hidden)),
        flags(size_t(AllToAllSignals::kNumKinds * s.num_ranks)) {}
};

// Every byte 0xFF: NaN for floats, -1 for indexes.
template <class T>
void poison(std::vector<T>& v) {
  if (!v.empty()) std::memset(v.data(), 0xFF, v.size() * sizeof(T));
}

class AllToAllRank {
 public:
  AllToAllRank(const AllToAllShape& shape, const RandomPlacement& placement, std::vector<AllToAllMemory>& memory,
               int rank, PeerWait wait, uint64_t seed)
      : shape_(shape),
        placement_(placement),
        memory_(memory),
        mine_(memory[size_t(rank)]),
        rank_(rank),
        random_(seed),
        ops_(make_ops({.num_threads = 1, .spin = false})),
        logical_(placement.logical_experts(rank)) {
    for (AllToAllMemory& m : memory) flags_.push_back(m.flags.data());
    signals.flags = flags_;
    signals.state = state_;
    signals.wait = wait;
    const int64_t all_tokens = shape.num_ranks * shape.max_tokens;
    const int64_t max_rows = all_tokens * std::min(shape.top_k, placement.num_local);
    offsets_.resize(logical_.size() + 1);
    row_of_.resize(size_t(all_tokens * shape.top_k));
    rows_.resize(size_t(max_rows * shape.hidden));
    results_.resize(rows_.size());
    scale_.resize(size_t(max_rows));
  }

  AllToAllSignals signals;

  // Dispatches tokens begin .. begin + counts[rank] of a random batch; counts: of every rank, in this round.
  void dispatch(const std::vector<int64_t>& counts, int64_t begin) {
    begin_ = begin;
    fill(begin + counts[size_t(rank_)]);
    sources_.clear();
    std::vector<DispatchInbox> inboxes;
    for (int r = 0; r < int(shape_.num_ranks); ++r) {
      sources_.push_back(source(r, counts[size_t(r)]));
      inboxes.push_back(r == rank_ ? DispatchInbox{} : inbox_at(memory_[size_t(r)], rank_));
      if (!sends_weights()) inboxes.back().expert_weight = nullptr;
    }
    all_to_all().dispatch(
        {.signals = signals,
         .inboxes = inboxes,
         .permute = {.sources = sources_,
                     .placement = placement_.view(),
                     .rank = rank_,
                     .expert_offsets = View<int32_t>(offsets_.data(), {int64_t(offsets_.size())}),
                     .x = rows(rows_),
                     .scale = shape_.scaled ? View<float>(scale_.data(), {int64_t(scale_.size())}) : View<float>()}},
        {});
  }

  int64_t num_rows() const { return offsets_.back(); }

  // The tokens in this rank's memory were read.
  void poison_tokens() { poison(mine_.x); }
  // What combine() reads of the peers' choices is moved elsewhere.
  void poison_choices() {
    idx_copy_ = mine_.expert_idx;
    weight_copy_ = mine_.expert_weight;
    for (size_t r = 0; r < sources_.size(); ++r) {
      if (int(r) == rank_) continue;
      sources_[r].expert_idx.data = idx_copy_.data() + (sources_[r].expert_idx.data - mine_.expert_idx.data());
      sources_[r].expert_weight.data =
          weight_copy_.data() + (sources_[r].expert_weight.data - mine_.expert_weight.data());
    }
    poison(mine_.expert_idx);
    poison(mine_.expert_weight);
  }
  // The results in this rank's memory were read.
  void poison_slots() { poison(mine_.slots); }

  void compute() {
    for (size_t e = 0; e < logical_.size(); ++e)
      for (int64_t row = offsets_[e]; row < offsets_[e + 1]; ++row)
        for (int64_t i = row * shape_.hidden; i < (row + 1) * shape_.hidden; ++i)
          results_[size_t(i)] =
              result_of_expert(logical_[e], rows_[size_t(i)]) * (shape_.scaled ? scale_[size_t(row)] : 1.0f);
  }

  // CombineArgs::expert_rows of the rank's tokens, as pointers.
  const std::vector<const void*>& combine() {
    const int64_t n = sources_[size_t(rank_)].expert_idx.dim(0);
    const int64_t own_slots = shape_.max_tokens * shape_.hidden;
    std::vector<CombineSource> sources;
    std::vector<const void*> slots;
    for (int r = 0; r < int(shape_.num_ranks); ++r) {
      const MoeSource& from = sources_[size_t(r)];
      sources.push_back({.row_of = {from.row_of.data, {from.expert_idx.dim(0), from.expert_idx.dim(1)}},
                         .expert_weight = shape_.scaled ? View<const float>() : from.expert_weight,
                         .slots = memory_[size_t(r)].slots.data() + (shape_.reduced ? rank_ * own_slots : 0)});
      slots.push_back(mine_.slots.data() + (shape_.reduced ? r * own_slots : 0));
    }
    // Other than null, so that a call that writes nothing is seen.
    expert_rows_.assign(size_t(n * (shape_.reduced ? shape_.num_ranks : shape_.top_k)), this);
    all_to_all().combine({.signals = signals,
                          .placement = placement_.view(),
                          .rank = rank_,
                          .expert_idx = sources_[size_t(rank_)].expert_idx,
                          .token_begin = sources_[size_t(rank_)].token_begin,
                          .rows = rows(results_),
                          .results = sources,
                          .reduced = shape_.reduced,
                          .slots = slots,
                          .expert_rows = View<const void*>(expert_rows_.data(), {n, columns()})},
                         {});
    return expert_rows_;
  }

  // The sums of what combine() found.
  std::vector<float> output() {
    const int64_t n = sources_[size_t(rank_)].expert_idx.dim(0);
    std::vector<float> out(size_t(n * shape_.hidden), NAN);
    MoeCombineArgs args = {.expert_rows = View<const void* const>(expert_rows_.data(), {n, columns()}),
                           .out = View<float>(out.data(), {n, shape_.hidden})};
    if (!shape_.reduced && !shape_.scaled) args.expert_weight = sources_[size_t(rank_)].expert_weight;
    ops_->moe_combine(args, {});
    return out;
  }

  // What they must be: sums in the order of the choices; reduced: of the sums of each rank, in rank order.
  std::vector<float> expected() const {
    std::vector<float> out, sums(size_t(shape_.num_ranks));
    const MoeSource& own = sources_[size_t(rank_)];
    for (int64_t t = 0; t < own.expert_idx.dim(0); ++t)
      for (int64_t i = 0; i < shape_.hidden; ++i) {
        std::ranges::fill(sums, 0.0f);
        float total = 0.0f;
        for (int64_t j = 0; j < shape_.top_k; ++j) {
          const int32_t expert = own.expert_idx(t, j);
          if (expert < 0) continue;
          const float y = result_of_expert(expert, x_[size_t((begin_ + t) * shape_.hidden + i)]);
          float& sum =
              shape_.reduced ? sums[size_t(placement_.rank[placement_.physical(expert, rank_, begin_ + t)])] : total;
          sum = sum + own.expert_weight(t, j) * y;
        }
        for (const float sum : sums) total = total + sum;
        out.push_back(total);
      }
    return out;
  }

 private:
  ExpertAllToAll& all_to_all() { return *ops_->expert_all_to_all(); }
  int64_t columns() const { return shape_.reduced ? shape_.num_ranks : shape_.top_k; }
  bool sends_weights() const { return shape_.scaled || shape_.reduced; }
  Operand rows(std::vector<float>& v) const {
    return View<float>(v.data(), {int64_t(v.size()) / shape_.hidden, shape_.hidden});
  }

  // Distinct experts per token; about one choice in eight is none.
  void fill(int64_t num_tokens) {
    x_.resize(size_t(num_tokens * shape_.hidden));
    for (float& v : x_) v = random_.uniform(-1.0f, 1.0f);
    idx_.resize(size_t(num_tokens * shape_.top_k));
    weight_.resize(idx_.size());
    for (float& v : weight_) v = random_.uniform(-1.0f, 1.0f);
    for (int64_t t = 0; t < num_tokens; ++t) {
      const int64_t first = random_.below(shape_.num_experts);
      for (int64_t j = 0; j < shape_.top_k; ++j)
        idx_[size_t(t * shape_.top_k + j)] = random_.below(8) == 0 ? -1 : int32_t((first + j) % shape_.num_experts);
    }
  }

  DispatchInbox inbox_at(AllToAllMemory& memory, int from) const {
    return {.x = memory.x.data() + from * shape_.max_tokens * packed_row_bytes(DType::kF32, shape_.hidden),
            .expert_idx = memory.expert_idx.data() + from * shape_.max_tokens * shape_.top_k,
            .expert_weight = memory.expert_weight.data() + from * shape_.max_tokens * shape_.top_k};
  }

  MoeSource source(int r, int64_t n) {
    MoeSource s;
    s.row_of = View<int32_t>(row_of_.data() + r * shape_.max_tokens * shape_.top_k, {n * shape_.top_k});
    s.token_begin = begin_;
    const DispatchInbox in = inbox_at(mine_, r);
    s.packed = r != rank_;
    s.x = s.packed ? Operand(in.x, DType::kF32, {n, shape_.hidden})
                   : Operand(View<float>(x_.data(), {begin_ + n, shape_.hidden}));
    const int64_t first = begin_ * shape_.top_k;
    s.expert_idx = View<const int32_t>(s.packed ? in.expert_idx : idx_.data() + first, {n, shape_.top_k});
    s.expert_weight = View<const float>(s.packed ? in.expert_weight : weight_.data() + first, {n, shape_.top_k});
    return s;
  }

  const AllToAllShape shape_;
  const RandomPlacement& placement_;
  std::vector<AllToAllMemory>& memory_;  // by rank
  AllToAllMemory& mine_;
  const int rank_;
  Random random_;
  const std::unique_ptr<Ops> ops_;
  const std::vector<int32_t> logical_;
  std::vector<uint32_t*> flags_;
  uint32_t state_[2] = {};
  int64_t begin_ = 0;  // first token of the batch that is dispatched
  std::vector<float> x_, weight_;
  std::vector<int32_t> idx_;
  std::vector<MoeSource> sources_;
  std::vector<int32_t> idx_copy_, offsets_, row_of_;
  std::vector<float> weight_copy_, rows_, results_, scale_;
  std::vector<const void*> expert_rows_;
};

}  // namespace moectl::test
