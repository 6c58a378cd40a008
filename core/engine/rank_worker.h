// RankWorker: one rank of the instance: its operations, communicator, KV cache, model and sampler, on its own thread.
// The scheduler thread hands it a plan and later collects the results; between steps it is parked. A step begins (its
// rows are made and computed, or put into the device's stream) and ends (its results are waited for and read); on a
// device that works by itself the next one may begin before one ends.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/comm/communicator.h"
#include "core/engine/device_sampler.h"
#include "core/engine/sampler.h"
#include "core/engine/scheduler.h"
#include "core/model/model.h"

namespace moectl {

struct RankSetup {
  const Config* config = nullptr;  // outlives the worker
  std::shared_ptr<const ModelWeights> weights;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Communicator> comm;
  ExpertPlacement placement;
  int num_pages = 0;
  DType kv_dtype = DType::kF32;
  ModelLimits limits;
  std::vector<int32_t> eos_token_ids;
  bool compute_mtp_kv = false;                  // plans may ask for it
  std::atomic<int64_t>* layers_done = nullptr;  // counts layers as they are computed; outlives the worker
};

class RankWorker {
 public:
  // Starts the thread, which builds cache and model: ranks of a group do that together, so start all, then wait for
  // each.
  explicit RankWorker(RankSetup setup);
  ~RankWorker();  // joins; a step in progress is finished first

  // What a step gave, and its time on the device's clock.
  struct StepResult {
    std::vector<ChunkResult> chunks;
    double busy_seconds = 0;  // from its beginning to its end
    double idle_seconds = 0;  // since the end of the step before
  };

  // Scheduler thread. launch() returns at once; `plan` lives until wait() has returned for it, and its sequences must
  // not change before begun() or wait() has. begun(): every launched step has begun. wait(): the oldest one has ended.
  // Both give an empty string, or why the rank failed; a rank that failed is final and has aborted its communicator.
  // Its first wait() is for its being built.
  void launch(const RankPlan& plan);
  std::string begun();
  std::string wait();
  StepResult take_result() { return std::move(result_); }
  // Where the rank's pages lie, once it is built.
  KvPool kv_pool() const;
  // True when the failure was a peer's: its own message says more.
  bool failed_by_peer() const { return failed_by_peer_; }

 private:
  void run();
  void build();
  struct StepInFlight {
    const RankPlan* plan = nullptr;
    Event begin, end;
    View<const float> logits;
    int sampled = 0;  // DeviceSampler's step
  };
  void begin_step(const RankPlan& plan);
  void end_step();
  void compute_mtp_kv(const RankPlan& plan);
  int sample_on_device(const RankPlan& plan, View<const float> logits);
  ChunkResult result_of(const Chunk& chunk, const StepInFlight& step, int& row);
  void fail(const std::string& what, bool by_peer);

  RankSetup setup_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Sampler> sampler_;
  Batch batch_, mtp_batch_;
  std::vector<int32_t> mtp_rows_;
  Buffer mtp_row_idx_, mtp_states_;  // [max_tokens], [max_tokens, hidden_size]: the states the MTP module starts from
  std::unique_ptr<DeviceSampler> device_sampler_;  // where logits are out of the host's reach
  std::deque<StepInFlight> in_flight_;
  Event last_end_;  // of the step that ended last
  StepResult result_;

  std::mutex mutex_;
  std::condition_variable changed_;
  const RankPlan* plan_ = nullptr;  // set: a step is to begin
  bool ends_ = false;               // the oldest step is to end, after that
  bool busy_ = true;                // building, or one of these is not done
  bool stop_ = false;
  std::string failure_;
  bool failed_by_peer_ = false;
  std::thread thread_;
};

// The model's rows for a plan. Pages of a sequence are a row of the page table.
void make_batch(const RankPlan& plan, Batch& batch);
// The MTP module's rows for the same plan, each with the token after its position, and where they stand in `batch`.
void make_mtp_batch(const RankPlan& plan, const Batch& batch, Batch& mtp_batch, std::vector<int32_t>& rows);

// The engine over ranks that are ready to start (engine.cpp); Engine::create and tests of failing ranks use it.
std::unique_ptr<Engine> start_engine(ModelInfo info, Config config, SchedulerConfig scheduler,
                                     std::vector<RankSetup> ranks, std::shared_ptr<PrefillSource> source = {});

}  // namespace moectl
