// The scheduler over simulated ranks: clients send requests, ranks compute nothing, and the clock counts rows: a step
// takes kStepCost rows for the weights that it reads and the rows of its longest rank. Every step is checked for what
// holds under any load.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "core/engine/scheduler.h"

namespace moectl {

constexpr int kStepCost = 256;

// Sends a request; `think_time` after its answer the next one, with the text so far and new tokens. Its draws do not
// depend on the schedule.
struct SimulatedClient {
  int64_t next_time = 0;
  std::vector<int32_t> text;  // a beginning that other clients may share
  int num_requests = 1;
  int min_new = 1, max_new = 1;  // prompt tokens after the text so far
  int min_output = 1, max_output = 1;
  int think_time = 0;
  std::mt19937 rng;
};

struct RankRows {
  int decodes = 0, prompt = 0;  // rows of the step
  int64_t kv_tokens = 0;        // context of the decodes
  int total() const { return decodes + prompt; }
};

struct SimulatedRequest {
  size_t client = 0;
  int64_t submitted = 0;
  int rank = -1, num_cached = 0, num_prompt = 0;
};

struct SimulationTotals {
  int64_t num_steps = 0, num_requests = 0;
  // Sums over steps, of the rank with the most and of the mean over ranks.
  int64_t max_rows = 0, max_kv_tokens = 0;  // kv_tokens: KV that the step's decodes read
  double mean_rows = 0, mean_kv_tokens = 0;
  int64_t time = 0;                               // idle time included
  int64_t first_token_time = 0, answer_time = 0;  // sums over requests, from submit to first and last token
};

class Simulation {
 public:
  explicit Simulation(SchedulerConfig config) : scheduler(config), waiting_prompts_(size_t(config.num_ranks)) {}

  void add(SimulatedClient client);
  // A request of `num_new` prompt tokens after `text`.
  uint64_t submit(std::vector<int32_t> text, int num_new, int num_output);
  // False when nothing is left to do. `rows` holds the last step.
  bool step();
  void run();
  // All pages are free once the prefix cache is flushed.
  void expect_no_leak();

  Scheduler scheduler;
  std::vector<RankRows> rows;
  std::map<uint64_t, SimulatedRequest> requests;
  SimulationTotals totals;

 private:
  uint64_t submit(size_t client);
  void execute(const StepPlan& plan);
  void collect();

  std::vector<SimulatedClient> clients_;
  std::multimap<int64_t, size_t> arrivals_;
  std::set<uint64_t> open_, decoding_;               // not finished; of these, with a first token
  std::vector<std::set<uint64_t>> waiting_prompts_;  // per rank: prompts of which the last step computed a part
  bool ran_dry_ = false;                             // a rank had no page left: sequences may have to wait
};

}  // namespace moectl
