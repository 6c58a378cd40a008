// BenchRank: one rank's part of bench_comm(), on the rank's thread: it runs every measurement, in the same order as its
// peers, and keeps this rank's times. It outlives the thread: peers may reach its memory until all have ended.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/comm/bench_comm.h"
#include "core/comm/stream_timer.h"

namespace moectl {

// Times of one rank; num_bytes and output_hash are this rank's.
struct RankResult {
  CommResult what;
  RankTimes times;
};
struct RankLinkTimes {
  LinkRate what;
  int64_t num_bytes = 0;
  Seconds seconds;
};

// What all ranks have in common.
struct CommBenchSetup {
  CommBenchOptions options;
  DType dtype = DType::kF32, results_dtype = DType::kF32;
  ExpertPlacement placement;
  std::vector<int> ordinals;  // of the ranks' devices; zeros on the CPU
  bool on_gpu = false;

  int64_t max_tokens() const;
  int64_t token_bytes() const;  // of a row on the wire
  int64_t result_bytes() const;
  ExpertDispatchConfig dispatch_config(bool deterministic) const;
};

class BenchRank {
 public:
  // Allocates what all measurements share, before any rank runs.
  BenchRank(std::shared_ptr<const CommBenchSetup> setup, std::unique_ptr<Ops> ops, std::unique_ptr<Communicator> comm);
  // Device memory that a rank takes, at most.
  static int64_t num_bytes(const CommBenchSetup& setup, const Ops& ops);

  void run();
  // Any thread: ends the waits of all ranks.
  void abort(const std::string& reason) { comm_->abort(reason); }
  // After run(), also one that threw: returns when the device is done with this rank's work, whatever became of it.
  void drain();

  const LinkBench& link() const { return *link_; }
  const std::vector<RankLinkTimes>& link_times() const { return link_times_; }
  const Seconds& flag_seconds() const { return flag_seconds_; }  // one way; of rank 0
  const std::vector<RankResult>& results() const { return results_; }

 private:
  void make_tokens();
  void measure_link();
  void measure_copies(const std::vector<std::byte*>& send, const std::vector<std::byte*>& receive);
  void measure_flag(const std::vector<std::byte*>& flags);
  void measure_all_gather(int64_t num_tokens);
  void measure_experts(bool deterministic);
  void measure_experts(ExpertDispatch& dispatch, bool deterministic, int64_t num_tokens);

  Stream stream() { return ops_->device().stream(); }
  Operand token_rows(int64_t num_tokens) const;
  template <class T>
  View<T> rows(const Buffer& buffer, int64_t num_tokens, int64_t row_size) const {
    return View<T>(reinterpret_cast<T*>(buffer.get()), {num_tokens, row_size});
  }
  // Random numbers, the same for every call of this rank; f32 or bf16.
  void fill(void* to, DType dtype, int64_t num_bytes);
  uint64_t output_hash(int64_t num_tokens);
  int64_t num_bytes(const CommResult& what) const;
  void add(CommResult what, RankTimes times);

  const std::shared_ptr<const CommBenchSetup> setup_;
  const std::unique_ptr<Ops> ops_;
  const std::unique_ptr<Communicator> comm_;
  const std::unique_ptr<LinkBench> link_;
  StreamTimer timer_;

  std::vector<int32_t> choices_;            // [max_tokens, top_k], on the host
  Buffer x_, out_;                          // [max_tokens, hidden_size] f32
  Buffer operand_;                          // x_ in the tokens' dtype; empty: f32
  Buffer expert_idx_, expert_weight_;       // [max_tokens, top_k]
  Buffer gathered_;                         // [ranks, max_tokens, token_bytes]
  Buffer link_send_, link_receive_, flag_;  // of measure_link()
  Buffer pattern_, host_out_;               // host memory: of fill(); a copy of out_
  int num_done_ = 0;                        // measurements

  std::vector<RankLinkTimes> link_times_;
  Seconds flag_seconds_;
  std::vector<RankResult> results_;
};

}  // namespace moectl
