// The scheduler's part in data parallelism: the rank of a sequence, and the rows per rank of a step. Ranks run in
// lockstep, so a step takes as long as its slowest rank. With one rank nothing here changes a plan.
#include <algorithm>
#include <utility>

#include "core/engine/scheduler.h"

namespace moectl {
namespace {

// A token that has to be computed costs a rank as much as so many tokens of KV cache that it holds. By the roofs of an
// H200, 500 decode steps read a token's KV in 1/7 (DeepSeek-R1, FP8) to 1.3 (Qwen3-30B-A3B, bf16) of the time that
// computes it, and prefill stays further below its roof. docs/performance.md compares 4, 8 and 16.
constexpr int kComputeCost = 8;

}  // namespace

bool Scheduler::has_room(const Rank& rank, const Sequence& seq) const {
  return rank.num_tokens < row_limit_ || may_go_remote(seq);
}

// What the rank's sequences cost, in tokens of KV cache.
int64_t Scheduler::load(const Rank& rank) const {
  int64_t num_held = 0, num_to_compute = rank.num_tokens;
  for (const Sequence* seq : rank.running) {
    const bool remote = seq->phase == Phase::kRemotePrefill;
    num_held += remote ? seq->num_tokens() : seq->num_computed;
    num_to_compute += remote ? 0 : seq->num_remaining();
  }
  return num_held + kComputeCost * num_to_compute;
}

// Pages that the rank's prompts take in later steps. A sequence that joins them without room in this step leaves these.
int Scheduler::num_promised_pages(const Rank& rank) const {
  int num_pages = 0;
  for (const Sequence* seq : rank.running)
    if (seq->phase == Phase::kRunning)
      num_pages += std::max(0, num_pages_for(seq->num_computed + seq->num_remaining()) - int(seq->pages.size()));
  return num_pages;
}

// Candidates for a waiting sequence, the cheapest first: the load of the rank, less the computing that its prefix cache
// saves. A rank without room in this step is a candidate if it saves something: waiting may cost less than computing
// the prefix again elsewhere.
std::vector<int> Scheduler::ranks_by_cost(const Sequence& seq) const {
  std::vector<int> open;  // ranks that may take a sequence
  bool any_has_room = false;
  for (int i = 0; i < config_.num_ranks; ++i) {
    const Rank& rank = *ranks_[size_t(i)];
    if (rank.preempted || int(rank.running.size()) >= config_.max_seqs_per_rank()) continue;
    open.push_back(i);
    any_has_room |= has_room(rank, seq);
  }
  if (!any_has_room) return {};
  std::vector<std::pair<int64_t, int>> costs;
  for (int i : open) {
    const Rank& rank = *ranks_[size_t(i)];
    const int num_hits = rank.cache.num_matching_pages(seq.request.cache_salt, seq.ids(), max_hits(seq));
    if (num_hits > 0 || has_room(rank, seq))
      costs.emplace_back(load(rank) - int64_t{kComputeCost} * config_.page_size * num_hits, i);
  }
  std::ranges::sort(costs);  // the lowest rank of equals
  std::vector<int> order;
  for (const auto& [cost, i] : costs) order.push_back(i);
  return order;
}

// Rows per rank that the step may have, once its decodes are planned. The rank with the fewest rows sets the limit,
// since it would only wait for the others: prompts take more steps, and prefills of several ranks overlap instead of
// following each other. Idle ranks do not count: nothing of theirs is delayed.
// On top of the longest rank's decodes, every rank may have 1/num_ranks of max_num_batched_tokens for prompts, at least
// 1/8: all prompts advance, and steps do not become short against the weights that each of them reads.
int Scheduler::prefill_row_limit() const {
  struct Load {
    int num_rows;  // if the rank computed its prompts to their end
    int num_seqs;
  };
  const int budget = config_.max_num_batched_tokens;
  std::vector<Load> loads;
  int max_decodes = 0, num_seqs = 0;
  for (const auto& rank : ranks_) {
    Load load{.num_rows = rank->num_tokens, .num_seqs = int(rank->running.size())};
    for (const Sequence* seq : rank->running)
      if (seq->phase == Phase::kRunning && seq->num_remaining() > 1) load.num_rows += seq->num_remaining();
    max_decodes = std::max(max_decodes, rank->num_tokens);
    num_seqs += load.num_seqs;
    loads.push_back(load);
  }
  // The queue is admitted after the running prompts are planned; until then it is assumed to spread evenly over the
  // ranks that may take a sequence, and to hit nothing.
  for (const auto& [handle, seq] : waiting_) {
    Load* least = nullptr;
    for (Load& load : loads)
      if (load.num_seqs < config_.max_seqs_per_rank() && (!least || load.num_rows < least->num_rows)) least = &load;
    if (!least || least->num_rows >= budget || num_seqs++ >= config_.max_num_seqs) break;
    ++least->num_seqs;
    if (!may_go_remote(*seq)) least->num_rows += seq->num_remaining();
  }
  int num_busy = 0, fewest_rows = budget;
  for (const Load& load : loads) {
    if (load.num_rows == 0) continue;
    ++num_busy;
    fewest_rows = std::min(fewest_rows, load.num_rows);
  }
  if (num_busy < 2) return budget;
  const int num_parts = std::min(config_.num_ranks, 8);
  return std::min(budget, std::max(fewest_rows, max_decodes + (budget + num_parts - 1) / num_parts));
}

}  // namespace moectl
