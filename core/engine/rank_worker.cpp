#include "core/engine/rank_worker.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/base/check.h"
#include "core/model/expert_counts.h"
#include "core/model/weights.h"

namespace moectl {
namespace {

// Steps of so many rows note the end of each layer on the device. Shorter ones end within seconds at any context; and a
// layer of a small step would wait for the event, which costs about 2 us.
constexpr int kNotedRows = 64;

}  // namespace

RankWorker::RankWorker(RankSetup setup) : setup_(std::move(setup)), thread_([this] { run(); }) {}

RankWorker::~RankWorker() {
  stop();
  thread_.join();
}

void RankWorker::stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
}

bool RankWorker::wait_until_stopped(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit, [&] { return stopped_; });
}

std::optional<RankFailure> RankWorker::wait_until_built() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return built_; });
  return failure_;
}

void RankWorker::launch(RankStepPlan plan) {
  {
    std::lock_guard lock(mutex_);
    plans_.push_back(std::move(plan));
  }
  changed_.notify_all();
}

std::optional<RankStepResult> RankWorker::wait(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  if (end_ == End::kNotAsked) {
    end_ = End::kAsked;
    changed_.notify_all();
  }
  if (!changed_.wait_for(lock, limit, [&] { return end_ == End::kHasResult; })) return std::nullopt;
  end_ = End::kNotAsked;
  if (failure_) return RankStepResult{.failure = failure_};
  return std::move(result_);
}

std::string RankWorker::activity() const {
  std::string text = "all layers issued";
  if (issues_step_)
    text = fmt::format("{} of {} layers issued", num_layers_issued_ - issued_before_step_, setup_.config->num_layers);
  if (has_peers()) text += "; its last wait for peers: " + last_operation();
  return text;
}

std::string RankWorker::last_operation() const {
  if (!setup_.tp) return setup_.comm->last_operation();
  if (setup_.comm->size() == 1) return setup_.tp->last_operation();
  return fmt::format("{} among all ranks, {} in its TP group", setup_.comm->last_operation(),
                     setup_.tp->last_operation());
}

void RankWorker::abort(const std::string& reason) {
  setup_.comm->abort(reason);
  if (setup_.tp) setup_.tp->abort(reason);
}

// Waits of peers end at once, on their devices too.
void RankWorker::fail(const std::string& what) {
  std::string named = has_peers() ? fmt::format("{}: {}", setup_.name, what) : what;
  if (has_peers() && setup_.ops->capabilities().asynchronous) named += "; its last wait for peers: " + last_operation();
  abort(named);
  std::lock_guard lock(mutex_);
  failure_ = {.what = named};
}

void RankWorker::fail_by_peer(const std::string& what) {
  abort(what);
  std::lock_guard lock(mutex_);
  failure_ = {.what = what, .by_peer = true};
}

// An exception ends the rank's usefulness, not its loop: the engine decides what comes next.
void RankWorker::run() {
  const auto guarded = [&](auto&& work) {
    try {
      work();
    } catch (const GroupAborted& e) {
      fail_by_peer(e.what());
    } catch (const std::exception& e) {
      fail(e.what());
    }
  };
  guarded([&] { build(); });
  std::unique_lock lock(mutex_);
  built_ = true;
  changed_.notify_all();
  const auto work = [&](auto&& part) {
    if (failure_) return;
    lock.unlock();
    guarded(part);
    lock.lock();
  };
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || end_ == End::kAsked || !plans_.empty(); });
    if (!plans_.empty()) {
      RankStepPlan plan = std::move(plans_.front());
      plans_.pop_front();
      work([&] { begin_step(std::move(plan)); });
    } else if (end_ == End::kAsked) {
      RankStepResult result;
      work([&] { result = end_step(); });
      result_ = std::move(result);
      end_ = End::kHasResult;
      changed_.notify_all();
    } else {
      lock.unlock();
      // A step in flight, also one that failed half issued, uses the buffers that are about to be freed.
      guarded([&] { setup_.ops->device().synchronize(setup_.ops->device().stream()); });
      lock.lock();
      stopped_ = true;
      changed_.notify_all();
      return;
    }
  }
}

void RankWorker::build() {
  cache_ =
      std::make_unique<KvCache>(*setup_.config, setup_.weights->dims, *setup_.ops, setup_.num_pages, setup_.kv_dtype);
  model_ = std::make_unique<Model>(*setup_.config, setup_.weights, *setup_.ops, *setup_.comm, setup_.placement, *cache_,
                                   setup_.limits, setup_.tp.get());
  model_->on_layer([this](bool captured) { on_layer(captured); });
  sampler_ = std::make_unique<Sampler>(setup_.config->vocab_size);
  mirrors_ = std::make_unique<SequenceMirrors>(setup_.num_pages, kPageSize, setup_.config->vocab_size);
  if (setup_.ops->device_sampling())
    device_sampler_ = std::make_unique<DeviceSampler>(setup_.limits, setup_.config->vocab_size, *setup_.ops,
                                                      setup_.comm->size() == 1 && !setup_.tp);
  expert_counts_ = setup_.ops->device().alloc_host(model_->expert_counts().size() * int64_t(sizeof(int64_t)));
  if (!setup_.compute_mtp_kv) return;
  const int64_t max_tokens = setup_.limits.max_tokens;
  mtp_row_idx_ = setup_.ops->device().alloc(max_tokens * int64_t(sizeof(int32_t)));
  mtp_states_ = setup_.ops->device().alloc(max_tokens * setup_.config->hidden_size * int64_t(sizeof(float)));
}

// A layer's page is [KV heads, keys and values of a head] with GQA: a lane is a head's part of it.
KvPool RankWorker::kv_pool() const {
  const LocalDims& dims = setup_.weights->dims;
  const bool mla = setup_.config->attention() == AttentionKind::kMla;
  const int num_local = mla ? 1 : dims.num_kv_heads, num_heads = mla ? 1 : setup_.config->gqa.num_kv_heads;
  const int first_head = mla ? 0 : dims.kv_head_begin;
  KvPool pool{.num_lanes = int(cache_->layers.size()) * num_heads,
              .num_pages = cache_->num_pages,
              .page_size = kPageSize,
              .page_stride = kPageSize * KvCache::values_per_token(*setup_.config, dims) * dtype_bytes(setup_.kv_dtype),
              .token_rows = mla};
  pool.page_bytes = pool.page_stride / num_local;
  pool.lanes.resize(size_t(pool.num_lanes));
  for (size_t layer = 0; layer < cache_->layers.size(); ++layer)
    for (int head = 0; head < num_local; ++head)
      pool.lanes[layer * size_t(num_heads) + size_t(first_head + head)] = {cache_->layers[layer].get() +
                                                                           head * pool.page_bytes};
  return pool;
}

void RankWorker::begin_step(RankStepPlan plan) {
  // The host samples when a step ends, from mirrors as its plan left them.
  CHECK(device_sampler_ || in_flight_.empty(), "two steps in flight, but the host samples");
  Device& device = setup_.ops->device();
  BegunStep step{.plan = std::move(plan)};
  step.mirrors = mirrors_->apply(step.plan);
  make_batch(step.plan, step.mirrors, batch_);
  step.begin = device.record_event(device.stream());
  notes_layer_ends_ = setup_.ops->capabilities().asynchronous && batch_.num_tokens() >= kNotedRows;
  issued_before_step_ = num_layers_issued_.load();
  issues_step_ = true;
  if (step.plan.compute) step.logits = model_->forward(batch_);
  if (device_sampler_ && step.plan.compute) step.sampled = sample_on_device(step);
  if (std::ranges::any_of(step.plan.chunks, [](const Chunk& c) { return c.mtp_end > c.begin; }))
    compute_mtp_kv(step.plan);
  if (step.plan.read_expert_load) copy_expert_counts();
  step.end = device.record_event(device.stream());
  issues_step_ = false;
  step.layer_ends = std::exchange(layer_ends_, {});
  in_flight_.push_back(std::move(step));
}

void RankWorker::on_layer(bool captured) {
  ++num_layers_issued_;
  Device& device = setup_.ops->device();
  if (notes_layer_ends_ && !captured) layer_ends_.push_back(device.record_event(device.stream()));
}

RankStepResult RankWorker::end_step() {
  CHECK(!in_flight_.empty(), "no step is in flight");
  const BegunStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  for (const Event& layer_end : step.layer_ends) {
    setup_.ops->device().wait(layer_end);
    ++num_layers_ended_;
  }
  setup_.ops->device().wait(step.end);
  setup_.comm->check();
  if (setup_.tp) setup_.tp->check();
  RankStepResult result{.busy_seconds = setup_.ops->device().seconds_between(step.begin, step.end)};
  if (last_end_) result.idle_seconds = setup_.ops->device().seconds_between(last_end_, step.begin);
  last_end_ = step.end;
  if (step.plan.read_expert_load)
    result.expert_load = fold_expert_counts(moe_layers(*setup_.config), setup_.placement,
                                            reinterpret_cast<const int64_t*>(expert_counts_.get()));
  if (!reports_tokens()) return result;
  int row = 0;
  for (size_t i = 0; i < step.plan.chunks.size(); ++i) result.chunks.push_back(result_of(step, i, row));
  return result;
}

// Into the one host buffer: no two steps in flight read the load (EngineImpl::launch).
void RankWorker::copy_expert_counts() {
  CHECK(std::ranges::none_of(in_flight_, [](const BegunStep& s) { return s.plan.read_expert_load; }),
        "two steps in flight read the experts' load");
  const View<const int64_t> counts = model_->expert_counts();
  Device& device = setup_.ops->device();
  if (counts) device.copy(expert_counts_.get(), counts.data, counts.size() * int64_t(sizeof(int64_t)), device.stream());
}

int RankWorker::sample_on_device(const BegunStep& step) {
  device_sampler_->begin();
  for (size_t i = 0; i < step.plan.chunks.size(); ++i) {
    const Chunk& chunk = step.plan.chunks[i];
    const SequenceMirror& mirror = *step.mirrors[i];
    for (int position = chunk.prompt_logits_begin; position < chunk.prompt_logits_end; ++position)
      device_sampler_->add(score_row(chunk.token_at(position + 1), mirror.start.sampling.num_logprobs));
    if (!chunk.sample) continue;
    const int num_output_tokens = chunk.end() - mirror.start.num_prompt_tokens;
    const int32_t last_id = chunk.token_ids.back();
    device_sampler_->add(SamplingRowArgs{.params = mirror.start.sampling,
                                         .prompt_ids = mirror.start.prompt_ids,
                                         .output_ids = mirror.output_ids,
                                         .eos_token_ids = mirror.start.eos_token_ids,
                                         .num_unknown = num_output_tokens - int(mirror.output_ids.size()),
                                         .feedback_row = last_id < 0 ? -1 - last_id : -1});
  }
  return device_sampler_->launch(step.logits, model_->sampled());
}

void RankWorker::compute_mtp_kv(const RankStepPlan& plan) {
  CHECK(mtp_states_, "a plan asks for the MTP module's KV");
  make_mtp_batch(plan, batch_, mtp_batch_, mtp_rows_);
  const int64_t num_rows = mtp_batch_.num_tokens(), hidden_size = setup_.config->hidden_size;
  setup_.ops->device().upload(mtp_row_idx_.get(), mtp_rows_.data(), num_rows * int64_t(sizeof(int32_t)));
  const View<float> states(reinterpret_cast<float*>(mtp_states_.get()), {num_rows, hidden_size});
  setup_.ops->gather(
      {model_->hidden(), View<const int32_t>(reinterpret_cast<const int32_t*>(mtp_row_idx_.get()), {num_rows}), states},
      {});
  model_->cache_mtp(mtp_batch_, states);
}

ChunkResult RankWorker::result_of(const BegunStep& step, size_t chunk_idx, int& row) {
  const Chunk& chunk = step.plan.chunks[chunk_idx];
  const SequenceMirror& mirror = *step.mirrors[chunk_idx];
  const SamplingParams& params = mirror.start.sampling;
  const auto logits_of = [&](int i) { return std::span(step.logits.row(i), size_t(step.logits.dim(1))); };
  const auto sampled = [&](int i) -> const SampledRow& { return device_sampler_->sampled(step.sampled, i); };
  ChunkResult result;
  int next = row;
  row += chunk.num_logits();
  try {
    for (int position = chunk.prompt_logits_begin; position < chunk.prompt_logits_end; ++position, ++next)
      result.prompt_logprobs.push_back(
          device_sampler_ ? sampled_token(sampled(next), params, std::max(params.num_logprobs, 0))
                          : sampler_->score(logits_of(next), chunk.token_at(position + 1), params.num_logprobs));
    if (!chunk.sample) return result;
    result.tokens.push_back(device_sampler_ ? sampled_token(sampled(next), params, params.num_logprobs)
                                            : sampler_->sample({.logits = logits_of(next),
                                                                .params = params,
                                                                .prompt_ids = mirror.start.prompt_ids,
                                                                .output_ids = mirror.output_ids,
                                                                .eos_token_ids = mirror.start.eos_token_ids}));
  } catch (const Error& e) {  // only this row's request ends
    result.error = e;
  }
  return result;
}

std::vector<std::unique_ptr<RankHandle>> start_rank_workers(const Config& config, std::vector<RankSetup> setups) {
  const auto shared = std::make_shared<const Config>(config);
  std::vector<std::unique_ptr<RankHandle>> ranks;
  for (RankSetup& setup : setups) {
    setup.config = shared;
    ranks.push_back(std::make_unique<RankWorker>(std::move(setup)));
  }
  return ranks;
}

}  // namespace moectl
