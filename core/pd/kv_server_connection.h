// One decode worker's connection to the KV server: its reader, its sender, and the jobs it asked for. However it ends,
// every job is released exactly once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "core/pd/kv_server.h"
#include "core/pd/transfer.h"

namespace moectl {

// What all connections of a server share.
struct KvServerContext {
  KvProducer producer;
  KvServerOptions options;
  KvLayout layout;
  std::vector<KvPool> pools;
  std::atomic<int64_t> num_connections{0}, num_active{0};
  std::atomic<int64_t> num_done{0}, num_failed{0}, num_cancelled{0}, num_refused_peers{0}, num_bytes{0};
};

class KvServerConnection {
 public:
  KvServerConnection(std::unique_ptr<TcpChannel> channel, KvServerContext& context);
  // The connection's life, on the reader's thread; returns when everything it held is given back. Never throws.
  void run();
  // Ends it, from any thread.
  void close();
  bool is_authenticated() const { return stage_ == Stage::kAuthenticated; }
  // Closes the connection unless its peer is authenticated by now; returns whether it did. Any thread.
  bool evict();

 private:
  // Outlives the connection in the sinks that the engine holds.
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;  // the sender has something to do
    bool closing = false;
  };
  // Fields below `mutex` are guarded by it; `out` is created under it and then the sender's.
  struct Job {
    transfer::TransferPlan plan;
    std::string request_id;
    // mutex
    bool started = false, cancelled = false, finished = false;
    uint64_t handle = 0;
    int64_t num_tokens_ready = 0;
    int num_cached_tokens = 0;
    double queue_seconds = 0, compute_seconds = 0;
    std::string error;
    std::optional<transfer::OutgoingTransfer> out;
    // the sender's
    std::optional<std::chrono::steady_clock::time_point> first_block;
  };
  enum class Stage { kHandshake, kAuthenticated, kEvicted };
  using JobMap = std::map<transfer::TransferId, std::shared_ptr<Job>>;

  void shake_hands_or_throw();
  void read_loop();
  void on_prefill(const transfer::Prefill& request);
  void start_job(const transfer::Prefill& request, const std::shared_ptr<Job>& job);
  void on_cancel(const transfer::Cancel& cancel);
  void say(transfer::Bytes frame);

  void send_loop();
  void send_frame(const transfer::Bytes& frame);
  std::shared_ptr<Job> pick_job();
  void advance(const std::shared_ptr<Job>& job);
  void send_blocks(Job& job, int64_t num_tokens_ready);
  void finish_job(const std::shared_ptr<Job>& job);
  void fail_job(const std::shared_ptr<Job>& job, const std::string& reason, bool cancelled);
  void send_last_word(const transfer::Bytes& frame);
  void end_job(const std::shared_ptr<Job>& job);
  void release_job(Job& job);

  std::unique_ptr<TcpChannel> channel_;
  KvServerContext& context_;
  FrameReader reader_;
  std::atomic<Stage> stage_{Stage::kHandshake};
  std::shared_ptr<Shared> shared_;
  JobMap jobs_;                         // shared_->mutex
  std::deque<transfer::Bytes> outbox_;  // shared_->mutex
  transfer::TransferId last_picked_{};
};

}  // namespace moectl
