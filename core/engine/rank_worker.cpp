#include "core/engine/rank_worker.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/base/check.h"

namespace moectl {

void make_batch(const RankPlan& plan, Batch& batch) {
  batch.token_ids.clear();
  batch.positions.clear();
  batch.seq_idx.clear();
  batch.logits_rows.clear();
  batch.max_pages = 0;
  for (const Chunk& chunk : plan.chunks) batch.max_pages = std::max(batch.max_pages, int(chunk.seq->pages.size()));
  batch.page_table.assign(plan.chunks.size() * size_t(batch.max_pages), 0);
  for (size_t s = 0; s < plan.chunks.size(); ++s) {
    const Chunk& chunk = plan.chunks[s];
    std::ranges::copy(chunk.seq->pages, batch.page_table.begin() + long(s) * batch.max_pages);
    const int end = chunk.begin + chunk.num_tokens;
    for (int position = chunk.begin; position < end; ++position) {
      const bool scores = position >= chunk.prompt_logits_begin && position < chunk.prompt_logits_end;
      if (scores || (chunk.sample && position == end - 1)) batch.logits_rows.push_back(batch.num_tokens());
      const bool known = position < chunk.seq->num_tokens();
      batch.token_ids.push_back(known ? chunk.seq->token_ids[size_t(position)] : -1 - chunk.feedback_row);
      batch.positions.push_back(position);
      batch.seq_idx.push_back(int32_t(s));
    }
  }
}

void make_mtp_batch(const RankPlan& plan, const Batch& batch, Batch& mtp_batch, std::vector<int32_t>& rows) {
  mtp_batch.token_ids.clear();
  mtp_batch.positions.clear();
  mtp_batch.seq_idx.clear();
  mtp_batch.page_table = batch.page_table;
  mtp_batch.max_pages = batch.max_pages;
  rows.clear();
  int first_row = 0;
  for (size_t s = 0; s < plan.chunks.size(); ++s) {
    const Chunk& chunk = plan.chunks[s];
    for (int position = chunk.begin; position < chunk.mtp_end; ++position) {
      rows.push_back(first_row + position - chunk.begin);
      mtp_batch.token_ids.push_back(chunk.seq->token_ids[size_t(position) + 1]);
      mtp_batch.positions.push_back(position);
      mtp_batch.seq_idx.push_back(int32_t(s));
    }
    first_row += chunk.num_tokens;
  }
}

RankWorker::RankWorker(RankSetup setup) : setup_(std::move(setup)), thread_([this] { run(); }) {}

RankWorker::~RankWorker() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void RankWorker::launch(const RankPlan& plan) {
  std::lock_guard lock(mutex_);
  CHECK(!busy_, "a step is beginning or ending");
  plan_ = &plan;
  busy_ = true;
  changed_.notify_all();
}

std::string RankWorker::begun() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !busy_; });
  return failure_;
}

std::string RankWorker::wait() {
  std::unique_lock lock(mutex_);
  busy_ = ends_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return !busy_; });
  return failure_;
}

void RankWorker::fail(const std::string& what, bool by_peer) {
  setup_.comm->abort(what);
  std::lock_guard lock(mutex_);
  failure_ = what;
  failed_by_peer_ = by_peer;
}

// Whatever is thrown ends the rank's usefulness, not its loop: the engine decides what comes next.
void RankWorker::run() {
  const auto guarded = [&](auto&& work) {
    try {
      work();
    } catch (const Error& e) {
      fail(e.what(), e.code() == Code::kUnavailable);
    } catch (const std::exception& e) {
      fail(e.what(), false);
    }
  };
  guarded([&] { build(); });
  std::unique_lock lock(mutex_);
  const auto work = [&](auto&& part) {
    if (!failure_.empty()) return;
    lock.unlock();
    guarded(part);
    lock.lock();
  };
  for (;;) {
    if (const RankPlan* plan = std::exchange(plan_, nullptr)) {
      work([&] { begin_step(*plan); });
    } else if (std::exchange(ends_, false)) {
      work([&] { end_step(); });
    } else if (stop_) {
      lock.unlock();
      if (!in_flight_.empty()) guarded([&] { setup_.ops->device().synchronize(setup_.ops->device().stream()); });  // it uses our memory
      return;
    } else {
      busy_ = false;
      changed_.notify_all();
      changed_.wait(lock, [&] { return stop_ || plan_ || ends_; });
    }
  }
}

void RankWorker::build() {
  cache_ = std::make_unique<KvCache>(*setup_.config, *setup_.ops, setup_.num_pages, setup_.kv_dtype);
  model_ = std::make_unique<Model>(*setup_.config, setup_.weights, *setup_.ops, *setup_.comm, setup_.placement, *cache_, setup_.limits);
  model_->count_layers(setup_.layers_done);
  sampler_ = std::make_unique<Sampler>(setup_.config->vocab_size);
  if (setup_.ops->device_sampling())
    device_sampler_ = std::make_unique<DeviceSampler>(setup_.limits, setup_.config->vocab_size, *setup_.ops);
  if (!setup_.compute_mtp_kv) return;
  const int64_t max_tokens = setup_.limits.max_tokens;
  mtp_row_idx_ = setup_.ops->device().alloc(max_tokens * int64_t(sizeof(int32_t)));
  mtp_states_ = setup_.ops->device().alloc(max_tokens * setup_.config->hidden_size * int64_t(sizeof(float)));
}

KvPool RankWorker::kv_pool() const {
  KvPool pool{.num_layers = int(cache_->layers.size()),
              .num_pages = cache_->num_pages,
              .page_size = kPageSize,
              .page_bytes = int64_t{kPageSize} * setup_.config->kv_values_per_token() * dtype_bytes(setup_.kv_dtype),
              .token_rows = setup_.config->attention() == AttentionKind::kMla};
  for (const Buffer& layer : cache_->layers) pool.layers.push_back(layer.get());
  return pool;
}

void RankWorker::begin_step(const RankPlan& plan) {
  Device& device = setup_.ops->device();
  StepInFlight step{.plan = &plan};
  make_batch(plan, batch_);
  step.begin = device.record_event(device.stream());
  step.logits = model_->forward(batch_);
  if (device_sampler_) step.sampled = sample_on_device(plan, step.logits);
  if (std::ranges::any_of(plan.chunks, [](const Chunk& c) { return c.mtp_end > c.begin; })) compute_mtp_kv(plan);
  step.end = device.record_event(device.stream());
  in_flight_.push_back(std::move(step));
}

void RankWorker::end_step() {
  CHECK(!in_flight_.empty(), "no step is in flight");
  const StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  setup_.ops->device().wait(step.end);
  result_ = {.busy_seconds = setup_.ops->device().seconds_between(step.begin, step.end)};
  if (last_end_) result_.idle_seconds = setup_.ops->device().seconds_between(last_end_, step.begin);
  last_end_ = step.end;
  int row = 0;
  for (const Chunk& chunk : step.plan->chunks) result_.chunks.push_back(result_of(chunk, step, row));
}

namespace {

// Text and parameters of a sequence, as both samplers take them.
template <class Args>
Args sampling_args(const Sequence& seq, std::span<const int32_t> eos_token_ids, auto&&... first) {
  return {first..., seq.request.sampling, seq.ids().first(size_t(seq.num_prompt_tokens)),
          seq.ids().subspan(size_t(seq.num_prompt_tokens)), eos_token_ids};
}

}  // namespace

int RankWorker::sample_on_device(const RankPlan& plan, View<const float> logits) {
  device_sampler_->begin();
  for (const Chunk& chunk : plan.chunks) {
    const int num_top = chunk.seq->request.sampling.num_logprobs;
    for (int i = chunk.prompt_logits_begin; i < chunk.prompt_logits_end; ++i)
      device_sampler_->add(score_row(chunk.seq->token_ids[size_t(i) + 1], num_top));
    if (!chunk.sample) continue;
    auto args = sampling_args<SamplingRowArgs>(*chunk.seq, setup_.eos_token_ids);
    args.num_unknown = chunk.begin + chunk.num_tokens - chunk.seq->num_tokens();
    args.feedback_row = chunk.feedback_row;
    device_sampler_->add(args);
  }
  return device_sampler_->launch(logits, model_->sampled());
}

void RankWorker::compute_mtp_kv(const RankPlan& plan) {
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

ChunkResult RankWorker::result_of(const Chunk& chunk, const StepInFlight& step, int& row) {
  const Sequence& seq = *chunk.seq;
  const int num_logprobs = seq.request.sampling.num_logprobs;
  const auto logits_of = [&](int i) { return std::span(step.logits.row(i), size_t(step.logits.dim(1))); };
  const auto sampled = [&](int i) -> const SampledRow& { return device_sampler_->sampled(step.sampled, i); };
  ChunkResult result;
  const int first_row = row;
  row += chunk.num_logits();
  try {
    int next = first_row;
    for (int position = chunk.prompt_logits_begin; position < chunk.prompt_logits_end; ++position, ++next)
      result.prompt_logprobs.push_back(
          device_sampler_ ? sampled_token(sampled(next), seq.request.sampling, std::max(num_logprobs, 0))
                          : sampler_->score(logits_of(next), seq.token_ids[size_t(position) + 1], num_logprobs));
    if (!chunk.sample) return result;
    result.token = device_sampler_
                       ? sampled_token(sampled(next), seq.request.sampling, num_logprobs)
                       : sampler_->sample(sampling_args<SampleArgs>(seq, setup_.eos_token_ids, logits_of(next)));
  } catch (const Error& e) {  // this row's fault: its request ends, the others go on
    result.error = e;
  }
  return result;
}

}  // namespace moectl
