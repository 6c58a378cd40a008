// RankWorker: a rank that is a thread of this process: its operations, communicator, KV cache, model, sequence mirrors
// and sampler. A step begins (its rows are made and computed, or put into the device's stream) and ends (its results
// are waited for and read). On a device that executes by itself the next step may begin before one ends.
//
// Threads: the scheduler thread moves plans into a queue and takes results, under one mutex; everything else belongs to
// the rank thread alone. Plans are values, so the scheduler may change its sequences as soon as launch() has returned.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/comm/communicator.h"
#include "core/engine/device_sampler.h"
#include "core/engine/rank_handle.h"
#include "core/engine/sampler.h"
#include "core/engine/sequence_mirror.h"
#include "core/model/model.h"

namespace moectl {

struct RankSetup {
  std::shared_ptr<const Config> config;
  std::shared_ptr<const ModelWeights> weights;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Communicator> comm;
  ExpertPlacement placement;
  int num_pages = 0;
  DType kv_dtype = DType::kF32;
  ModelLimits limits;
  bool compute_mtp_kv = false;  // plans may ask for it
};

class RankWorker final : public RankHandle {
 public:
  // Starts the thread, which builds cache and model.
  explicit RankWorker(RankSetup setup);
  ~RankWorker() override;

  std::optional<RankFailure> wait_until_built() override;
  void launch(RankStepPlan plan) override;
  void finish() override;  // joins the thread
  RankStepResult wait() override;
  KvPool kv_pool() const override;
  int64_t num_layers_done() const override { return num_layers_done_; }

 private:
  void run();
  void build();
  struct BegunStep {
    RankStepPlan plan;
    ChunkMirrors mirrors;
    Event begin, end;
    View<const float> logits;
    int sampled = 0;  // DeviceSampler's step
  };
  void begin_step(RankStepPlan plan);
  RankStepResult end_step();
  void compute_mtp_kv(const RankStepPlan& plan);
  void copy_expert_counts();
  int sample_on_device(const BegunStep& step);
  ChunkResult result_of(const BegunStep& step, size_t chunk_idx, int& row);
  void fail(const std::string& what, bool by_peer);

  // Rank thread.
  RankSetup setup_;
  std::atomic<int64_t> num_layers_done_{0};  // any thread
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<SequenceMirrors> mirrors_;
  Batch batch_, mtp_batch_;
  std::vector<int32_t> mtp_rows_;
  Buffer mtp_row_idx_, mtp_states_;  // [max_tokens], [max_tokens, hidden_size]: the states the MTP module starts from
  std::unique_ptr<DeviceSampler> device_sampler_;  // where the host cannot read logits
  Buffer expert_counts_;                           // the model's, in host memory: read_expert_load
  std::deque<BegunStep> in_flight_;                // oldest first
  Event last_end_;                                 // of the step that ended last

  // Shared, under mutex_.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RankStepPlan> plans_;  // launched, to begin
  bool ends_ = false;               // the scheduler thread waits for the oldest step, after `plans_` have begun
  RankStepResult result_;           // of that step
  bool built_ = false;              // or failed
  bool stop_ = false;
  std::optional<RankFailure> failure_;
  std::thread thread_;
};

// One RankWorker per setup, all started; their `config` is set here.
std::vector<std::unique_ptr<RankHandle>> start_rank_workers(const Config& config, std::vector<RankSetup> setups);

}  // namespace moectl
