#include "core/pd/kv_peer.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/base/log.h"

namespace moectl {

using namespace transfer;

using Clock = TcpChannel::Clock;
using Millis = TcpChannel::Millis;

KvPeer::KvPeer(std::string endpoint, KvLayout layout, const KvClientOptions& options,
               std::function<void(KvOutcome)> on_end)
    : endpoint_(std::move(endpoint)), layout_(std::move(layout)), options_(options), on_end_(std::move(on_end)) {
  thread_ = std::thread([this] { run(); });
}

KvPeer::~KvPeer() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    if (channel_) channel_->shutdown();
  }
  stop_waker_.wake();
  changed_.notify_all();
  thread_.join();
}

void KvPeer::submit(std::shared_ptr<KvAttempt> attempt) {
  {
    std::lock_guard lock(mutex_);
    if (!attempt->is_open()) return;
    if (!stop_ && int(attempts_.size()) < options_.max_transfers) {
      attempts_[attempt->plan.id] = attempt;
      outbox_.push_back({std::move(attempt->request), attempt});
      attempt = nullptr;
    }
  }
  if (attempt) return fail(attempt, "limit", fmt::format("{} transfers are under way already", options_.max_transfers));
  changed_.notify_all();
}

void KvPeer::cancel(const KvAttempt& attempt) {
  {
    std::lock_guard lock(mutex_);
    if (!attempts_.contains(attempt.plan.id)) return;
    outbox_.push_back({encode(Cancel{attempt.plan.id, attempt.plan.epoch}), nullptr});
  }
  changed_.notify_all();
}

bool KvPeer::idle() const {
  std::lock_guard lock(mutex_);
  return attempts_.empty();
}

// ------------------------------------------------------------------------------------------------ ends
void KvPeer::fail(const std::shared_ptr<KvAttempt>& attempt, const std::string& cause, const std::string& error) {
  if (attempt->close()) on_end_({.attempt = attempt, .cause = cause, .error = error});
}

void KvPeer::fail_all(const std::string& cause, const std::string& error) {
  AttemptMap attempts;
  {
    std::lock_guard lock(mutex_);
    attempts.swap(attempts_);
    outbox_.clear();
  }
  for (const auto& [id, attempt] : attempts) fail(attempt, cause, error);
}

// ------------------------------------------------------------------------------------------------ the connection's
// thread
void KvPeer::run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !attempts_.empty(); });
      if (stop_) break;
    }
    try {
      serve_once();
    } catch (const std::exception& e) {  // out of memory, or of threads
      hang_up();
      fail_all("limit", e.what());
    }
  }
  fail_all("closed", "this worker is shutting down");
}

// One connection from its beginning to its end, or a failure to make one.
void KvPeer::serve_once() {
  if (Clock::now() < next_try_) return fail_all(last_cause_, last_error_);
  try {
    connect_or_throw();
    backoff_ = Millis(0);
    log::info("kv: connected to prefill worker {}", endpoint_);
  } catch (const Error& e) {
    backoff_ = std::clamp(backoff_ * 2, options_.first_backoff, options_.max_backoff);
    next_try_ = Clock::now() + backoff_;
    last_error_ = e.what();
    last_cause_ = reader_ ? "handshake" : "connect";
    log::warn("kv: prefill worker {}: {}", endpoint_, last_error_);
    hang_up();
    return fail_all(last_cause_, last_error_);
  }

  std::string cause = "closed", error;
  std::thread sender([this] { send_loop(); });
  try {
    read_loop();
  } catch (const Error& e) {
    if (e.code() != Code::kUnavailable) cause = "protocol";
    error = e.what();
  } catch (const std::exception& e) {
    cause = "limit";
    error = e.what();
  }
  {
    std::lock_guard lock(mutex_);
    connected_ = false;
    channel_->shutdown();
  }
  changed_.notify_all();
  sender.join();
  hang_up();
  log::info("kv: connection to prefill worker {} ended: {}", endpoint_, error);
  fail_all(cause, error);
}

void KvPeer::connect_or_throw() {
  reader_.reset();
  std::unique_ptr<TcpChannel> channel =
      TcpChannel::connect(parse_endpoint(endpoint_), options_.timeouts.connect, stop_waker_);
  {
    std::lock_guard lock(mutex_);
    if (stop_) throw Error(Code::kUnavailable, "this worker is shutting down");
    channel_ = std::move(channel);
  }
  reader_ = std::make_unique<FrameReader>(*channel_);
  const Hello ours{.role = Role::kDecode, .layout = layout_};
  const Hello theirs = shake_hands(*channel_, *reader_, ours, options_.secret, options_.timeouts);
  reader_->set_limits({.from = FrameLimits::From::kPrefill, .max_payload_bytes = layout_.page_bytes});
  std::lock_guard lock(mutex_);
  max_prompt_tokens_ = theirs.max_prompt_tokens;
  connected_ = true;
}

void KvPeer::hang_up() {
  reader_.reset();
  std::lock_guard lock(mutex_);
  connected_ = false;
  channel_.reset();
}

void KvPeer::read_loop() {
  for (;;) {
    const FrameReader::Frame frame = reader_->next(options_.timeouts.dead_after);
    switch (frame.type) {
      case FrameType::kBlock:
        on_block(frame);
        break;
      case FrameType::kDone:
        on_done(decode_done(frame.fields));
        break;
      case FrameType::kFailed:
        on_failed(decode_failed(frame.fields));
        break;
      default:
        break;  // a heartbeat; the limits let nothing else through
    }
  }
}

void KvPeer::on_block(const FrameReader::Frame& frame) {
  const Block block = decode_block(frame.fields);
  const std::shared_ptr<KvAttempt> attempt = find(block.id);
  std::lock_guard lock(attempt->mutex);
  attempt->incoming.receive(block, frame.payload, attempt->open);
}

void KvPeer::on_done(const Done& done) {
  const std::shared_ptr<KvAttempt> attempt = find(done.id);
  KvOutcome outcome{.attempt = attempt, .ok = true, .done = done};
  {
    std::lock_guard lock(attempt->mutex);
    attempt->incoming.finish(done);
    outcome.num_bytes = attempt->incoming.num_bytes();
  }
  forget(done.id);
  if (attempt->close()) on_end_(std::move(outcome));
}

void KvPeer::on_failed(const Failed& failed) {
  const std::shared_ptr<KvAttempt> attempt = find(failed.id);
  if (failed.epoch != attempt->plan.epoch)
    throw Error(Code::kBadData, fmt::format("{}: the worker's last word is for another epoch", endpoint_));
  forget(failed.id);
  fail(attempt, "refused", failed.reason.empty() ? "the worker gave no reason" : failed.reason);
}

std::shared_ptr<KvAttempt> KvPeer::find(const TransferId& id) {
  std::lock_guard lock(mutex_);
  const auto it = attempts_.find(id);
  if (it == attempts_.end())
    throw Error(Code::kBadData, fmt::format("{}: a message for a transfer that is not open", endpoint_));
  return it->second;
}

void KvPeer::forget(const TransferId& id) {
  std::lock_guard lock(mutex_);
  attempts_.erase(id);
}

// ------------------------------------------------------------------------------------------------ the sender's thread
void KvPeer::send_loop() {
  try {
    auto next_heartbeat = Clock::now() + options_.timeouts.heartbeat;
    for (;;) {
      Message message;
      {
        std::unique_lock lock(mutex_);
        changed_.wait_until(lock, next_heartbeat, [this] { return stop_ || !connected_ || !outbox_.empty(); });
        if (stop_ || !connected_) return;
        if (outbox_.empty()) {
          message.frame = encode_heartbeat();
        } else {
          message = std::move(outbox_.front());
          outbox_.pop_front();
        }
      }
      send_message(std::move(message));
      next_heartbeat = Clock::now() + options_.timeouts.heartbeat;
    }
  } catch (const std::exception& e) {
    log::info("kv: sending to prefill worker {} ended: {}", endpoint_, e.what());
    channel_->shutdown();  // the reader sees it and fails the transfers
  }
}

void KvPeer::send_message(Message message) {
  if (message.attempt && message.attempt->num_prompt_tokens > max_prompt_tokens_) {
    forget(message.attempt->plan.id);
    return fail(message.attempt, "refused",
                fmt::format("a prompt of {} tokens; the worker takes {} (--max-model-len)",
                            message.attempt->num_prompt_tokens, max_prompt_tokens_));
  }
  send(*channel_, message.frame, options_.timeouts.dead_after);
}

}  // namespace moectl
