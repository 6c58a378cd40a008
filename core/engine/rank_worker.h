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
  std::string name = "rank 0";  // RankHandle::name()
  std::shared_ptr<const Config> config;
  std::shared_ptr<const ModelWeights> weights;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Communicator> comm;  // of the ranks that the experts are placed on
  std::unique_ptr<Communicator> tp;    // of the TP group; null: tp_size 1
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
  std::optional<RankStepResult> wait(std::chrono::milliseconds limit) override;
  void stop() override;
  bool wait_until_stopped(std::chrono::milliseconds limit) override;
  KvPool kv_pool() const override;
  void abort(const std::string& reason) override;
  std::string name() const override { return setup_.name; }
  int64_t num_layers_done() const override { return num_layers_issued_ + num_layers_ended_; }
  std::string activity() const override;

 private:
  void run();
  void build();
  struct BegunStep {
    RankStepPlan plan;
    ChunkMirrors mirrors;
    Event begin, end;
    std::vector<Event> layer_ends;  // of a step of many rows on a device that executes by itself
    View<const float> logits;
    int sampled = 0;  // DeviceSampler's step
  };
  void begin_step(RankStepPlan plan);
  RankStepResult end_step();
  void compute_mtp_kv(const RankStepPlan& plan);
  void copy_expert_counts();
  int sample_on_device(const BegunStep& step);
  ChunkResult result_of(const BegunStep& step, size_t chunk_idx, int& row);
  void on_layer(bool captured);
  void fail_by_peer(const std::string& what);
  void fail(const std::string& what);
  bool has_peers() const { return setup_.comm->size() > 1 || setup_.tp; }
  bool reports_tokens() const { return !setup_.tp || setup_.tp->rank() == 0; }
  std::string last_operation() const;

  // Any thread.
  std::atomic<int64_t> num_layers_issued_{0}, num_layers_ended_{0};
  std::atomic<int64_t> issued_before_step_{0};  // num_layers_issued_ when the latest step began
  std::atomic<bool> issues_step_{false};

  // Rank thread.
  RankSetup setup_;
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
  std::vector<Event> layer_ends_;                  // of the step that is being issued
  bool notes_layer_ends_ = false;
  Event last_end_;  // of the step that ended last

  // Shared, under mutex_.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RankStepPlan> plans_;  // launched, to begin
  enum class End { kNotAsked, kAsked, kHasResult };
  End end_ = End::kNotAsked;  // of the oldest step, after `plans_` have begun
  RankStepResult result_;     // of that step
  bool built_ = false;        // or failed
  bool stop_ = false, stopped_ = false;
  std::optional<RankFailure> failure_;
  std::thread thread_;
};

// One RankWorker per setup, all started; their `config` is set here.
std::vector<std::unique_ptr<RankHandle>> start_rank_workers(const Config& config, std::vector<RankSetup> setups);

}  // namespace moectl
