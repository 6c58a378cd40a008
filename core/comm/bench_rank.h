// BenchRank: one rank's part of bench_comm(), on the rank's thread: it runs every measurement, in the same order as its
// peers, and keeps this rank's times. It outlives the thread: peers may reach its memory until all have ended.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/comm/bench_groups.h"
#include "core/comm/link_measurement.h"

namespace moectl {

// Times of one rank; num_bytes and output_hash are this rank's.
struct RankResult {
  CommResult what;
  RankTimes times;
};

class BenchRank {
 public:
  // Allocates what all measurements share, before any rank runs. `ops` and `groups` outlive the object.
  BenchRank(std::shared_ptr<const CommBenchSetup> setup, Ops& ops, const std::vector<CommBenchGroup>& groups, int rank);
  // Device memory that a rank takes, at most.
  static int64_t num_bytes(const CommBenchSetup& setup, const Ops& ops);

  void run();
  // Any thread: ends the waits of all ranks.
  void abort(const std::string& reason);
  // After run(), also one that threw: returns when the device is done with this rank's work, whatever became of it.
  void drain();

  const LinkBench& link() const { return *link_; }
  const LinkMeasurement* link_measurement() const { return link_measurement_ ? &*link_measurement_ : nullptr; }
  const std::vector<RankResult>& results() const { return results_; }

 private:
  Communicator& comm(const CommBenchGroup& group) const { return *group.by_rank[size_t(rank_)]; }
  void make_tokens();
  void run_once(Communicator& comm, const std::function<void()>& operation);
  RankTimes measure(Communicator& comm, const std::function<void()>& operation,
                    const std::function<void()>& before = {});
  void measure_barrier(const CommBenchGroup& group);
  void measure_all_gather(const CommBenchGroup& group, int64_t num_tokens);
  bool has_all_reduce(const CommBenchGroup& group, int64_t num_tokens) const;
  void measure_all_reduce(const CommBenchGroup& group, int64_t num_tokens);
  void measure_experts(const CommBenchGroup& group, bool deterministic);
  void measure_experts(const CommBenchGroup& group, ExpertDispatch& dispatch, bool deterministic, int64_t num_tokens);

  Stream stream() { return ops_.device().stream(); }
  Operand token_rows(int64_t num_tokens) const;
  template <class T>
  View<T> rows(const Buffer& buffer, int64_t num_tokens, int64_t row_size) const {
    return View<T>(reinterpret_cast<T*>(buffer.get()), {num_tokens, row_size});
  }
  // Random numbers, the same for every call of this rank; f32 or bf16.
  void fill(void* to, DType dtype, int64_t num_bytes);
  uint64_t output_hash(int64_t num_tokens);
  int64_t num_bytes(const CommResult& what) const;
  void check_output(const CommResult& what);
  void add(CommResult what, RankTimes times);
  int num_measurements() const;
  void report_progress();

  const std::shared_ptr<const CommBenchSetup> setup_;
  Ops& ops_;
  const std::vector<CommBenchGroup>& groups_;
  const int rank_;
  const std::unique_ptr<LinkBench> link_;
  StreamTimer timer_;
  std::optional<LinkMeasurement> link_measurement_;  // none: ranks do not address each other's memory

  std::vector<int32_t> choices_;       // [max_tokens, top_k], on the host
  Buffer x_, out_;                     // [max_tokens, hidden_size] f32
  Buffer operand_;                     // x_ in the tokens' dtype; empty: f32
  Buffer expert_idx_, expert_weight_;  // [max_tokens, top_k]
  Buffer gathered_;                    // [ranks, max_tokens, token_bytes]
  Buffer pattern_, host_out_;          // host memory: of fill(); a copy of out_
  int num_done_ = 0;                   // measurements

  std::vector<RankResult> results_;
};

}  // namespace moectl
