#include "tests/engine/scheduler_simulation.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace moectl {
namespace {

int32_t token_at(size_t client, int position, int32_t vocab_size) {
  return int32_t((client * 7919 + size_t(position) * 104729) % size_t(vocab_size));
}

int draw(std::mt19937& rng, int low, int high) {
  return low + int(rng() % unsigned(high - low + 1));
}

}  // namespace

void Simulation::add(SimulatedClient client) {
  arrivals_.emplace(client.next_time, clients_.size());
  clients_.push_back(std::move(client));
}

uint64_t Simulation::submit(std::vector<int32_t> text, int num_new, int num_output) {
  clients_.push_back({.text = std::move(text),
                      .min_new = num_new,
                      .max_new = num_new,
                      .min_output = num_output,
                      .max_output = num_output});
  return submit(clients_.size() - 1);
}

uint64_t Simulation::submit(size_t index) {
  SimulatedClient& client = clients_[index];
  const int32_t vocab_size = scheduler.config().vocab_size;
  for (int n = draw(client.rng, client.min_new, client.max_new); n > 0; --n)
    client.text.push_back(token_at(index, int(client.text.size()), vocab_size));
  GenerateRequest request{.prompt_ids = client.text};
  request.sampling.max_tokens = draw(client.rng, client.min_output, client.max_output);
  request.sampling.ignore_eos = true;
  check_request(request, scheduler.config());
  const uint64_t handle = requests.size() + 1;
  requests[handle] = {.client = index, .submitted = totals.time, .num_prompt = int(client.text.size())};
  open_.insert(handle);
  ++totals.num_requests;
  --client.num_requests;
  scheduler.submit(handle, std::move(request));
  return handle;
}

bool Simulation::step() {
  while (!arrivals_.empty() && (arrivals_.begin()->first <= totals.time || !scheduler.has_work())) {
    const auto [time, client] = *arrivals_.begin();
    arrivals_.erase(arrivals_.begin());
    totals.time = std::max(totals.time, time);
    submit(client);
  }
  if (!scheduler.has_work()) return false;
  execute(scheduler.plan({}));
  collect();
  return true;
}

void Simulation::execute(const StepPlan& plan) {
  EXPECT_FALSE(plan.empty()) << "work that nothing advances";
  const SchedulerConfig& config = scheduler.config();
  StepResult result;
  rows.assign(plan.ranks.size(), {});
  std::set<uint64_t> planned;
  std::vector<std::set<uint64_t>> waiting(plan.ranks.size());
  for (size_t r = 0; r < plan.ranks.size(); ++r) {
    RankStepResult& rank_result = result.ranks.emplace_back();
    for (const Chunk& chunk : plan.ranks[r].chunks) {
      planned.insert(chunk.seq);
      SimulatedRequest& request = requests.at(chunk.seq);
      if (chunk.start && request.rank < 0) request.rank = int(r), request.num_cached = chunk.begin;
      if (chunk.num_tokens() == 1)
        ++rows[r].decodes, rows[r].kv_tokens += chunk.end();
      else
        rows[r].prompt += chunk.num_tokens();
      if (chunk.end() < request.num_prompt) waiting[r].insert(chunk.seq);
      ChunkResult& chunk_result = rank_result.chunks.emplace_back();
      if (chunk.sample) chunk_result.tokens = {{.id = token_at(request.client, chunk.end(), config.vocab_size)}};
    }
    EXPECT_LE(rows[r].total(), config.max_num_batched_tokens);
  }
  ran_dry_ |= scheduler.stats().num_preemptions_total > 0;
  for (int r = 0; r < config.num_ranks; ++r) ran_dry_ |= scheduler.pool(r).num_available() == 0;
  if (!ran_dry_) {
    for (const uint64_t handle : decoding_) EXPECT_TRUE(planned.count(handle)) << "a decode is delayed";
    for (const auto& prompts : waiting_prompts_)
      EXPECT_TRUE(prompts.empty() || planned.count(*prompts.begin())) << "a rank's oldest prompt does not advance";
  }
  waiting_prompts_ = std::move(waiting);

  int max_rows = 0;
  int64_t max_kv_tokens = 0;
  for (const RankRows& rank : rows) {
    max_rows = std::max(max_rows, rank.total());
    max_kv_tokens = std::max(max_kv_tokens, rank.kv_tokens);
    totals.mean_rows += double(rank.total()) / double(rows.size());
    totals.mean_kv_tokens += double(rank.kv_tokens) / double(rows.size());
  }
  ++totals.num_steps;
  totals.max_rows += max_rows;
  totals.max_kv_tokens += max_kv_tokens;
  totals.time += kStepCost + max_rows;
  scheduler.complete(plan, std::move(result));
}

void Simulation::collect() {
  for (const Emission& emission : scheduler.take_emissions()) {
    const SimulatedRequest& request = requests.at(emission.handle);
    SimulatedClient& client = clients_[request.client];
    EXPECT_TRUE(open_.count(emission.handle)) << "an output after the last";
    for (const auto& token : emission.output.tokens) client.text.push_back(token.id);
    if (decoding_.insert(emission.handle).second) totals.first_token_time += totals.time - request.submitted;
    if (emission.output.finish == FinishReason::kNone) continue;
    EXPECT_EQ(emission.output.finish, FinishReason::kLength);
    totals.answer_time += totals.time - request.submitted;
    decoding_.erase(emission.handle);
    open_.erase(emission.handle);
    if (client.num_requests > 0) arrivals_.emplace(totals.time + client.think_time, request.client);
  }
}

void Simulation::run() {
  for (int limit = 1000000; step(); --limit) ASSERT_GT(limit, 0) << "no end";
  EXPECT_TRUE(open_.empty()) << open_.size() << " requests are not answered";
}

void Simulation::expect_no_leak() {
  EXPECT_EQ(scheduler.stats().kv_pages_used, 0);
  scheduler.flush_prefix_cache();
  for (int r = 0; r < scheduler.config().num_ranks; ++r)
    EXPECT_EQ(scheduler.pool(r).num_free(), scheduler.config().num_pages) << "rank " << r;
}

}  // namespace moectl
