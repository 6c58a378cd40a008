#include "core/pd/kv_server_connection.h"

#include <algorithm>
#include <thread>

#include "core/base/check.h"
#include "core/base/log.h"

namespace moectl {

using namespace transfer;

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxOutbox = 1024;  // short messages waiting for a peer that does not read
constexpr size_t kBatchBlocks = 64;  // blocks of one system call, at most
constexpr size_t kBatchBytes = size_t(1) << 20;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

KvServerConnection::KvServerConnection(std::unique_ptr<TcpChannel> channel, KvServerContext& context)
    : channel_(std::move(channel)), context_(context), reader_(*channel_), shared_(std::make_shared<Shared>()) {}

void KvServerConnection::close() {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->closing = true;
  }
  shared_->changed.notify_all();
  channel_->shutdown();
}

bool KvServerConnection::evict() {
  Stage expected = Stage::kHandshake;
  if (!stage_.compare_exchange_strong(expected, Stage::kEvicted)) return false;
  close();
  return true;
}

// ------------------------------------------------------------------------------------------------ the reader's thread
void KvServerConnection::run() {
  const std::string peer = channel_->peer();
  std::thread sender;
  bool authenticated = false;
  try {
    shake_hands_or_throw();
    Stage expected = Stage::kHandshake;
    authenticated = stage_.compare_exchange_strong(expected, Stage::kAuthenticated);
    if (!authenticated) throw Error(Code::kUnavailable, "evicted");
    if (++context_.num_connections > context_.options.max_connections)
      throw Error(Code::kUnavailable,
                  fmt::format("over the limit of {} decode workers", context_.options.max_connections));
    log::info("kv: decode worker {} is connected", peer);
    sender = std::thread([this] { send_loop(); });
    read_loop();
  } catch (const std::exception& e) {
    if (authenticated)
      log::info("kv: connection of decode worker {} ended: {}", peer, e.what());
    else if (stage_ != Stage::kEvicted)  // the acceptor logs evictions
      log::warn("kv: connection from {} refused: {}", peer, e.what());
  }
  close();
  if (sender.joinable()) sender.join();
  if (authenticated)
    --context_.num_connections;
  else
    ++context_.num_refused_peers;
  for (auto& [id, job] : jobs_) {  // neither thread runs any more
    ++context_.num_failed;
    release_job(*job);
    --context_.num_active;
  }
  jobs_.clear();
}

void KvServerConnection::shake_hands_or_throw() {
  const Hello ours{
      .role = Role::kPrefill, .layout = context_.layout, .max_prompt_tokens = context_.options.max_prompt_tokens};
  shake_hands(*channel_, reader_, ours, context_.options.secret, context_.options.timeouts);
  reader_.set_limits({.from = FrameLimits::From::kDecode, .max_prompt_tokens = context_.options.max_prompt_tokens});
}

void KvServerConnection::read_loop() {
  for (;;) {
    const FrameReader::Frame frame = reader_.next(context_.options.timeouts.dead_after);
    switch (frame.type) {
      case FrameType::kPrefill:
        on_prefill(decode_prefill(frame.fields, context_.options.max_prompt_tokens));
        break;
      case FrameType::kCancel:
        on_cancel(decode_cancel(frame.fields));
        break;
      default:
        break;  // a heartbeat; the limits let nothing else through
    }
  }
}

void KvServerConnection::on_prefill(const Prefill& request) {
  auto job = std::make_shared<Job>();
  job->request_id = request.request_id;
  job->plan = {.id = request.id,
               .epoch = request.epoch,
               .num_lanes = context_.layout.num_lanes,
               .page_size = context_.layout.page_size,
               .page_bytes = context_.layout.page_bytes,
               .first_page = request.first_page,
               .num_tokens = request.num_tokens,
               .token_rows = context_.layout.token_rows};
  {
    std::lock_guard lock(shared_->mutex);
    if (shared_->closing) return;
    if (!jobs_.try_emplace(request.id, job).second) throw Error(Code::kBadData, "the peer used a transfer id twice");
  }
  std::string refusal;
  if (++context_.num_active > context_.options.max_transfers) {
    refusal = fmt::format("the prefill worker has {} transfers already", context_.options.max_transfers);
  } else {
    try {
      start_job(request, job);
    } catch (const std::exception& e) {
      refusal = e.what();
    }
  }
  if (refusal.empty()) return;
  {
    std::lock_guard lock(shared_->mutex);
    jobs_.erase(request.id);
  }
  --context_.num_active;
  ++context_.num_failed;
  log::warn(log::About{request.request_id}, "kv: prefill refused: {}", refusal);
  say(encode(Failed{request.id, request.epoch, refusal}));
}

// Throws when the job did not begin.
void KvServerConnection::start_job(const Prefill& request, const std::shared_ptr<Job>& job) {
  check_plan(job->plan, int64_t(request.prompt_ids.size()));
  PrefillSink sink = [shared = shared_, job, &pools = context_.pools](const PrefillProgress& progress) {
    {
      std::lock_guard lock(shared->mutex);
      if (shared->closing) return;
      job->num_cached_tokens = progress.num_cached_tokens;
      job->queue_seconds = progress.queue_seconds;
      job->compute_seconds = progress.compute_seconds;
      job->num_tokens_ready = progress.num_tokens_ready;
      if (progress.finished) job->finished = true, job->error = progress.error;
      try {
        if (!job->out && !progress.pages.pages.empty()) {
          CHECK(size_t(progress.pages.rank) < pools.size(), "rank {} of {}", progress.pages.rank, pools.size());
          job->out.emplace(job->plan, pools[size_t(progress.pages.rank)], progress.pages.pages);
        }
      } catch (const std::exception& e) {
        job->error = e.what();
      }
    }
    shared->changed.notify_one();
  };
  const uint64_t handle = context_.producer.prefill({.request_id = request.request_id,
                                                     .prompt_ids = request.prompt_ids,
                                                     .num_tokens = int(request.num_tokens),
                                                     .cache_salt = request.cache_salt},
                                                    std::move(sink));
  {
    std::lock_guard lock(shared_->mutex);
    job->handle = handle;
    job->started = true;
  }
  shared_->changed.notify_one();
}

void KvServerConnection::on_cancel(const Cancel& cancel) {
  std::shared_ptr<Job> job;
  {
    std::lock_guard lock(shared_->mutex);
    const auto it = jobs_.find(cancel.id);
    if (it == jobs_.end() || it->second->plan.epoch != cancel.epoch) return;  // its last word is on the way
    job = it->second;
    job->cancelled = true;
  }
  shared_->changed.notify_one();
}

void KvServerConnection::say(Bytes frame) {
  {
    std::lock_guard lock(shared_->mutex);
    if (outbox_.size() >= kMaxOutbox) throw Error(Code::kUnavailable, "the peer asks faster than it reads");
    outbox_.push_back(std::move(frame));
  }
  shared_->changed.notify_one();
}

// ------------------------------------------------------------------------------------------------ the sender's thread
void KvServerConnection::send_loop() {
  try {
    auto next_heartbeat = Clock::now() + context_.options.timeouts.heartbeat;
    for (;;) {
      Bytes frame;
      std::shared_ptr<Job> job;
      {
        std::unique_lock lock(shared_->mutex);
        shared_->changed.wait_until(lock, next_heartbeat, [&] {
          return shared_->closing || !outbox_.empty() || (job = pick_job()) != nullptr;
        });
        if (shared_->closing) return;
        if (!outbox_.empty()) {
          frame = std::move(outbox_.front());
          outbox_.pop_front();
        }
      }
      if (!frame.empty())
        send_frame(frame);
      else if (job)
        advance(job);
      else
        send_frame(encode_heartbeat());
      next_heartbeat = Clock::now() + context_.options.timeouts.heartbeat;
    }
  } catch (const std::exception& e) {
    log::info("kv: sending to decode worker {} ended: {}", channel_->peer(), e.what());
    close();
  }
}

void KvServerConnection::send_frame(const Bytes& frame) {
  send(*channel_, frame, context_.options.timeouts.dead_after);
}

// The next job with something to send, in turns. shared_->mutex is held.
std::shared_ptr<KvServerConnection::Job> KvServerConnection::pick_job() {
  const auto has_work = [](const Job& job) {
    return job.started && (job.cancelled || job.finished || !job.error.empty() ||
                           (job.out && job.out->has_next(job.num_tokens_ready)));
  };
  auto it = jobs_.upper_bound(last_picked_);
  for (size_t i = 0; i < jobs_.size(); ++i, ++it) {
    if (it == jobs_.end()) it = jobs_.begin();
    if (has_work(*it->second)) {
      last_picked_ = it->first;
      return it->second;
    }
  }
  return nullptr;
}

// Some of a job's blocks, or its last word.
void KvServerConnection::advance(const std::shared_ptr<Job>& job) {
  bool cancelled, has_pages;
  int64_t num_tokens_ready;
  std::string error;
  {
    std::lock_guard lock(shared_->mutex);
    cancelled = job->cancelled;
    has_pages = job->out.has_value();
    num_tokens_ready = job->num_tokens_ready;
    error = job->error;
  }
  if (cancelled) return fail_job(job, "cancelled", true);
  if (!error.empty()) return fail_job(job, error, false);
  if (has_pages && job->out->has_next(num_tokens_ready)) return send_blocks(*job, num_tokens_ready);
  if (has_pages && job->out->all_sent()) return finish_job(job);
  fail_job(job, fmt::format("the engine finished with {} of {} tokens", num_tokens_ready, job->plan.num_tokens), false);
}

void KvServerConnection::send_blocks(Job& job, int64_t num_tokens_ready) {
  if (!job.first_block) job.first_block = Clock::now();
  std::array<BlockFrame, kBatchBlocks> frames;
  std::array<iovec, 2 * kBatchBlocks> parts;
  size_t num_blocks = 0, num_bytes = 0;
  while (num_blocks < kBatchBlocks && num_bytes < kBatchBytes) {
    const auto piece = job.out->next(num_tokens_ready);
    if (!piece) break;
    frames[num_blocks] = encode(piece->block);
    parts[2 * num_blocks] = {frames[num_blocks].data(), frames[num_blocks].size()};
    parts[2 * num_blocks + 1] = {const_cast<std::byte*>(piece->payload.data()), piece->payload.size()};
    num_bytes += piece->payload.size();
    ++num_blocks;
  }
  channel_->send_all({parts.data(), 2 * num_blocks}, context_.options.timeouts.dead_after);
  context_.num_bytes += int64_t(num_bytes);
}

void KvServerConnection::finish_job(const std::shared_ptr<Job>& job) {
  Done done = job->out->done();
  done.transfer_seconds = seconds_since(*job->first_block);
  {
    std::lock_guard lock(shared_->mutex);
    done.num_cached_tokens = job->num_cached_tokens;
    done.queue_seconds = std::max(0.0, job->queue_seconds);
    done.compute_seconds = std::max(0.0, job->compute_seconds);
  }
  end_job(job);
  ++context_.num_done;
  send_last_word(encode(done));
}

void KvServerConnection::fail_job(const std::shared_ptr<Job>& job, const std::string& reason, bool cancelled) {
  end_job(job);
  ++(cancelled ? context_.num_cancelled : context_.num_failed);
  if (!cancelled) log::warn(log::About{job->request_id}, "kv: prefill failed: {}", reason);
  send_last_word(encode(Failed{job->plan.id, job->plan.epoch, reason}));
}

// A transfer is under way until its last word lies in the socket: a worker that shuts down waits for that.
void KvServerConnection::send_last_word(const Bytes& frame) {
  const struct Left {
    std::atomic<int64_t>& num_active;
    ~Left() { --num_active; }
  } left{context_.num_active};
  send_frame(frame);
}

// Every byte that will be sent of it lies in the socket.
void KvServerConnection::end_job(const std::shared_ptr<Job>& job) {
  {
    std::lock_guard lock(shared_->mutex);
    jobs_.erase(job->plan.id);
  }
  release_job(*job);
}

// Once for every job: by whoever took it out of jobs_, or at the very end.
void KvServerConnection::release_job(Job& job) {
  bool finished;
  {
    std::lock_guard lock(shared_->mutex);
    finished = job.finished;
  }
  try {
    if (!finished) context_.producer.cancel(job.handle);
  } catch (const std::exception& e) {
    log::error("kv: cancelling prefill {} failed: {}", job.request_id, e.what());
  }
  try {
    context_.producer.release(job.handle);
  } catch (const std::exception& e) {
    log::error("kv: releasing the pages of prefill {} failed: {}", job.request_id, e.what());
  }
}

}  // namespace moectl
