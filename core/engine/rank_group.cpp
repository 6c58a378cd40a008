#include "core/engine/rank_group.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/base/log.h"

namespace moectl {
namespace {

using std::chrono::milliseconds;

// Of the step timeout. Slices are counted, not time: one that a stopped process slept through (SIGSTOP) counts once.
constexpr int kSlices = 20;
// The first steps may find kernels of this binary that the driver has yet to load, or to compile where it has PTX only:
// half a minute in total, the most of it within one layer.
constexpr int kFirstSteps = 8, kFirstStepsFactor = 6;
constexpr milliseconds kHostSlice{1000};
// After a failure, until the other ranks have ended: their waits end at once. A rank on the host computes its layer to
// the end before.
constexpr int kFailureSlices = 2, kHostFailureSlices = 120;

// The cause, rather than what the peers of the failed rank say.
const RankFailure& cause_of(const std::vector<RankFailure>& failures) {
  const auto own = std::ranges::find(failures, false, &RankFailure::by_peer);
  return own == failures.end() ? failures.front() : *own;
}

double seconds(std::chrono::duration<double> t) {
  return t.count();
}

}  // namespace

RankGroup::RankGroup(std::vector<std::unique_ptr<RankHandle>> ranks, int num_groups, milliseconds step_timeout)
    : ranks_(std::move(ranks)),
      tp_size_(int(ranks_.size()) / num_groups),
      watched_(step_timeout > milliseconds(0)),
      slice_(watched_ ? std::max(step_timeout / kSlices, milliseconds(1)) : kHostSlice) {
  CHECK(tp_size_ * num_groups == int(ranks_.size()), "{} ranks in {} TP groups", ranks_.size(), num_groups);
}

RankGroup::~RankGroup() {
  for (const auto& rank : ranks_) rank->stop();
  // A step in flight ends first, unless its failure is known.
  const int patience = has_failed_ ? kFailureSlices : kSlices;
  int num_slices = 0;
  std::string hanging;
  for (const auto& rank : ranks_) {
    bool stopped = rank->wait_until_stopped(slice_);
    while (!stopped && (!watched_ || num_slices < patience)) {
      ++num_slices;
      stopped = rank->wait_until_stopped(slice_);
    }
    if (!stopped) hanging += (hanging.empty() ? "" : ", ") + rank->name();
  }
  if (hanging.empty()) return;
  log::warn("{} did not stop; the memory of all ranks is left to the end of the process", hanging);
  for (auto& rank : ranks_) static_cast<void>(rank.release());
}

void RankGroup::wait_until_built() {
  std::vector<RankFailure> failures;
  for (const auto& rank : ranks_)
    if (auto failure = rank->wait_until_built()) failures.push_back(*std::move(failure));
  if (failures.empty()) return;
  has_failed_ = true;
  throw Error(Code::kBadConfig, "the model could not be set up: " + cause_of(failures).what);
}

void RankGroup::launch(const StepPlan& plan) {
  for (size_t r = 0; r < ranks_.size(); ++r) ranks_[r]->launch(plan.ranks[r / size_t(tp_size_)]);
}

std::vector<RankStepResult> RankGroup::wait() {
  Results results(ranks_.size());
  const int limit = kSlices * (num_steps_ended_ < kFirstSteps ? kFirstStepsFactor : 1);
  const int failure_limit = watched_ ? kFailureSlices : kHostFailureSlices;
  int64_t seen = num_layers_done();
  for (int num_silent = 0, num_after_failure = 0; !take_results(results);) {
    const auto failed = [](const auto& result) { return result && result->failure; };
    if (std::ranges::any_of(results, failed)) {
      if (++num_after_failure >= failure_limit) break;
    } else {
      const int64_t before = std::exchange(seen, num_layers_done());
      num_silent = seen == before ? num_silent + 1 : 0;
      if (!watched_ || num_silent < limit) continue;
      has_failed_ = true;
      const std::string reason = stall_text(results, num_silent);
      for (const auto& rank : ranks_) rank->abort(reason);
      throw Error(Code::kUnavailable, reason);
    }
  }
  for (auto& result : results) {
    if (result && !result->failure) continue;
    has_failed_ = true;
    throw Error(Code::kUnavailable, failure_text(results));
  }
  std::vector<RankStepResult> step;
  for (auto& result : results) step.push_back(*std::move(result));
  ++num_steps_ended_;
  return step;
}

// Waits a slice for the first rank that has none, and does not wait for others; whether all have.
bool RankGroup::take_results(Results& results) {
  bool all = true;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (!results[r]) results[r] = ranks_[r]->wait(all ? slice_ : milliseconds(0));
    all = all && results[r];
  }
  return all;
}

std::string RankGroup::failure_text(const Results& results) const {
  std::vector<RankFailure> failures;
  std::string others;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (!results[r])
      others += fmt::format("; {} did not end its step: {}", ranks_[r]->name(), ranks_[r]->activity());
    else if (results[r]->failure)
      failures.push_back(*results[r]->failure);
  }
  return cause_of(failures).what + others;
}

std::string RankGroup::stall_text(const Results& results, int num_slices) const {
  std::string text;
  for (size_t r = 0; r < ranks_.size(); ++r)
    if (!results[r])
      text += fmt::format("{}{} did not end its step, no progress within {:.3g} s: {}", text.empty() ? "" : "; ",
                          ranks_[r]->name(), seconds(slice_ * num_slices), ranks_[r]->activity());
  return text;
}

int64_t RankGroup::num_layers_done() const {
  int64_t layers = 0;
  for (const auto& rank : ranks_) layers += rank->num_layers_done();
  return layers;
}

}  // namespace moectl
