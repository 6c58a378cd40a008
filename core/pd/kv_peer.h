// KvPeer: one prefill worker as the decode role sees it. One connection carries all transfers; it is made when the
// first is asked for and made again, with back-off, when it broke. Anything that the protocol forbids ends the
// connection and fails every transfer on it.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "core/pd/kv_client.h"
#include "core/pd/transfer.h"

namespace moectl {

// One request at one worker. Pages are written under `mutex` while `open`: whoever closes it knows that nothing is
// written any more.
struct KvAttempt {
  KvAttempt(uint64_t handle, const transfer::Prefill& request, transfer::IncomingTransfer incoming)
      : handle(handle),
        num_prompt_tokens(int64_t(request.prompt_ids.size())),
        request(encode(request)),
        plan(incoming.plan()),
        incoming(std::move(incoming)) {}

  // Whether it was still open.
  bool close() {
    std::lock_guard lock(mutex);
    return std::exchange(open, false);
  }
  bool is_open() {
    std::lock_guard lock(mutex);
    return open;
  }

  const uint64_t handle;
  const int64_t num_prompt_tokens;
  transfer::Bytes request;  // the message; the peer takes it
  const transfer::TransferPlan plan;
  std::mutex mutex;
  bool open = true;                     // mutex
  transfer::IncomingTransfer incoming;  // mutex
};

struct KvOutcome {
  std::shared_ptr<KvAttempt> attempt;  // closed
  bool ok = false;
  std::string cause, error;  // when not ok; causes: KvClientStats::failures
  transfer::Done done;       // when ok
  int64_t num_bytes = 0;
};

class KvPeer {
 public:
  // `on_end` tells the end of every attempt but those that were closed by somebody else. It is called without locks and
  // must not block.
  KvPeer(std::string endpoint, KvLayout layout, const KvClientOptions& options, std::function<void(KvOutcome)> on_end);
  ~KvPeer();  // ends the connection and the threads; attempts under way fail

  void submit(std::shared_ptr<KvAttempt> attempt);
  // Tells the worker to stop. The attempt is closed already.
  void cancel(const KvAttempt& attempt);
  bool idle() const;

 private:
  using AttemptMap = std::map<transfer::TransferId, std::shared_ptr<KvAttempt>>;
  struct Message {
    transfer::Bytes frame;
    std::shared_ptr<KvAttempt> attempt;  // of a Prefill
  };

  void run();
  void serve_once();
  void connect_or_throw();
  void read_loop();
  void on_block(const FrameReader::Frame& frame);
  void on_done(const transfer::Done& done);
  void on_failed(const transfer::Failed& failed);
  std::shared_ptr<KvAttempt> find(const transfer::TransferId& id);
  void forget(const transfer::TransferId& id);

  void send_loop();
  void send_message(Message message);
  void hang_up();
  void fail(const std::shared_ptr<KvAttempt>& attempt, const std::string& cause, const std::string& error);
  void fail_all(const std::string& cause, const std::string& error);

  const std::string endpoint_;
  const KvLayout layout_;
  const KvClientOptions& options_;
  const std::function<void(KvOutcome)> on_end_;

  Waker stop_waker_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false, connected_ = false;     // mutex_
  AttemptMap attempts_;                       // mutex_; closed ones stay until the worker's last word on them
  std::deque<Message> outbox_;                // mutex_
  std::unique_ptr<TcpChannel> channel_;       // mutex_ to change; the run thread's
  std::unique_ptr<FrameReader> reader_;       // the run thread's
  int64_t max_prompt_tokens_ = 0;             // of the worker, while connected
  TcpChannel::Clock::time_point next_try_{};  // the run thread's
  TcpChannel::Millis backoff_{};              // the run thread's
  std::string last_error_, last_cause_;       // the run thread's
  std::thread thread_;                        // last: it uses all of the above
};

}  // namespace moectl
