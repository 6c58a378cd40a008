// The scheduler's bookkeeping for prompts that another worker computes: no threads, no model.
#include <gtest/gtest.h>

#include "core/engine/scheduler.h"

namespace moectl {
namespace {

SchedulerConfig small_config() {
  return {.num_ranks = 1,
          .num_pages = 8,
          .page_size = 4,
          .max_num_seqs = 4,
          .max_num_batched_tokens = 8,
          .max_model_len = 30,
          .vocab_size = 50,
          .enable_prefix_caching = false,
          .takes_jobs = true};
}

GenerateRequest request(int num_prompt, int max_tokens, bool remote) {
  GenerateRequest r{.id = "r", .prompt_ids = std::vector<int32_t>(size_t(num_prompt), 7)};
  r.sampling.max_tokens = max_tokens;
  if (remote) r.prefill_workers = {"p"};
  return r;
}

struct Fixture : testing::Test {
  std::vector<uint64_t> cancelled;
  std::vector<int> used_at_cancel;  // pages held while the other side may still write
  std::vector<Emission> emissions;
  Scheduler scheduler{small_config(), [this](uint64_t remote) {
                        cancelled.push_back(remote);
                        used_at_cancel.push_back(scheduler.pool(0).num_used());
                      }};

  bool step(Scheduler::TimePoint now = {}) {
    const StepPlan plan = scheduler.plan(now);
    if (!plan.empty()) {
      StepResult result{.ranks = std::vector<RankStepResult>(1)};
      for (const Chunk& chunk : plan.ranks[0].chunks) {
        ChunkResult& chunk_result = result.ranks[0].chunks.emplace_back();
        if (chunk.sample) chunk_result.tokens = {{.id = 9}};
      }
      scheduler.complete(plan, std::move(result), now);
    }
    for (Emission& e : scheduler.take_emissions()) emissions.push_back(std::move(e));
    return !plan.empty();
  }
  RemotePrefill only_start() {
    auto starts = scheduler.take_remote_starts();
    EXPECT_EQ(starts.size(), 1u);
    return starts.empty() ? RemotePrefill{} : starts[0];
  }
};
using SchedulerPd = Fixture;

TEST_F(SchedulerPd, ReservesThePagesAndLeavesTheLastToken) {
  scheduler.submit(1, request(10, 3, true));
  EXPECT_FALSE(step()) << "nothing to compute yet";
  EXPECT_TRUE(scheduler.waits_for_others());
  const RemotePrefill start = only_start();
  EXPECT_EQ(start.num_tokens, 9);
  EXPECT_EQ(start.into.first_page, 0);
  EXPECT_EQ(start.into.pages.size(), 3u);
  EXPECT_EQ(scheduler.stats().num_remote_prefills, 1);
  scheduler.remote_done(start.handle, {.ok = true, .worker = "p", .num_bytes = 5});
  const StepPlan plan = scheduler.plan({});
  ASSERT_EQ(plan.ranks[0].chunks.size(), 1u);
  EXPECT_EQ(plan.ranks[0].chunks[0].begin, 9);
  EXPECT_TRUE(plan.ranks[0].chunks[0].sample);
  EXPECT_EQ(plan.ranks[0].chunks[0].new_pages, start.into.pages);
  scheduler.end_all(FinishReason::kCancelled, "");
  EXPECT_TRUE(cancelled.empty());
}

TEST_F(SchedulerPd, AResultOfAnEarlierAttemptChangesNothing) {
  scheduler.submit(1, request(7, 20, false));
  step();
  scheduler.submit(2, request(18, 3, true));
  step();
  const RemotePrefill first = only_start();
  while (cancelled.empty()) ASSERT_TRUE(step());  // the older one grows until it takes the younger one's pages
  EXPECT_EQ(cancelled, std::vector{first.handle});
  EXPECT_EQ(used_at_cancel, std::vector{8}) << "no page is given away before the other side has stopped";
  scheduler.remote_done(first.handle, {.ok = true, .worker = "p"});  // it was on its way
  EXPECT_EQ(scheduler.stats().num_remote_prefills, 0);
  for (int i = 0; i < 100 && scheduler.stats().num_remote_prefills == 0; ++i) step();
  const RemotePrefill second = only_start();
  EXPECT_NE(second.handle, first.handle);
  scheduler.remote_done(first.handle, {.ok = true, .worker = "p"});
  EXPECT_EQ(scheduler.stats().num_remote_prefills, 1) << "the second attempt goes on";
  scheduler.remote_done(second.handle, {.error = "lost"});
  while (scheduler.has_work()) ASSERT_TRUE(step());
  EXPECT_EQ(scheduler.pool(0).num_used(), 0);
  EXPECT_EQ(emissions.back().output.finish, FinishReason::kLength);
}

TEST_F(SchedulerPd, CancelDeadlineAndEndStopTheOtherSideFirst) {
  const auto at = [](int s) { return Scheduler::TimePoint(std::chrono::seconds(s)); };
  for (uint64_t handle : {1, 2, 3}) {
    GenerateRequest r = request(6, 3, true);
    if (handle == 2) r.deadline = at(5);
    scheduler.submit(handle, std::move(r));
  }
  step(at(1));
  EXPECT_EQ(scheduler.take_remote_starts().size(), 3u);
  EXPECT_EQ(scheduler.next_deadline(), at(5));
  scheduler.cancel(1);
  step(at(5));
  EXPECT_EQ(scheduler.next_deadline(), std::nullopt);
  scheduler.end_all(FinishReason::kError, "over");
  EXPECT_EQ(cancelled, (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(used_at_cancel, (std::vector<int>{6, 4, 2}));
  EXPECT_EQ(scheduler.pool(0).num_used(), 0);
}

TEST_F(SchedulerPd, ARemotePrefillNeedsNoRoomInTheStep) {
  scheduler.submit(1, request(16, 1, false));  // two whole steps
  scheduler.submit(2, request(9, 1, true));
  ASSERT_TRUE(step());
  EXPECT_EQ(only_start().num_tokens, 8);
}

TEST_F(SchedulerPd, AJobIsNeverPreempted) {
  scheduler.submit(1, request(11, 18, false));
  step();
  step();  // three pages, full; the fourth is needed while the job is being computed
  scheduler.submit_job(2, {.prompt_ids = std::vector<int32_t>(20, 7), .num_tokens = 18});
  while (step()) {
  }
  EXPECT_TRUE(scheduler.waits_for_others()) << "the job keeps its five pages, the request has no fourth";
  EXPECT_EQ(scheduler.stats().num_preemptions_total, 0);
  const auto progress = scheduler.take_progress();
  ASSERT_EQ(progress.front().progress.pages.pages.size(), 5u);
  EXPECT_TRUE(progress.back().progress.finished);
  EXPECT_EQ(progress.back().progress.num_tokens_ready, 18);
  scheduler.release_job(2);
  while (scheduler.has_work()) ASSERT_TRUE(step());
}

TEST_F(SchedulerPd, JobsEndInEveryPhase) {
  for (uint64_t handle : {1, 2, 3})
    scheduler.submit_job(handle, {.prompt_ids = std::vector<int32_t>(17, 7), .num_tokens = 16});
  scheduler.release_job(3);  // in the queue
  step();
  step();  // the first is parked, the second runs
  scheduler.submit_job(4, {.prompt_ids = std::vector<int32_t>(17, 7), .num_tokens = 16});
  scheduler.end_all(FinishReason::kError, "over");
  std::map<uint64_t, std::string> errors;
  for (const JobProgress& p : scheduler.take_progress())
    if (p.progress.finished) {
      EXPECT_TRUE(errors.emplace(p.handle, p.progress.error).second) << "ended twice";
    }
  EXPECT_EQ(errors, (std::map<uint64_t, std::string>{
                        {1, ""}, {2, "over"}, {3, "its pages were released before it was finished"}, {4, "over"}}));
  EXPECT_FALSE(scheduler.has_work());
  EXPECT_EQ(scheduler.pool(0).num_used(), 0);
}

}  // namespace
}  // namespace moectl
