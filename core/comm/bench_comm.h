// `moectl bench comm`: what ranks take for barrier, all-gather, all-reduce, dispatch and combine, over p2p and over
// NCCL, beside the rates of the link between them, measured in the same run. Plain data in and out; the caller parses
// and prints.
//
// How a time is taken: ranks leave a barrier, stamp their stream, run the operation and stamp again; on GPUs inside
// CUDA graphs and by the device's clock, on the CPU by the wall clock. The time of an iteration is that of the slowest
// rank. Each measurement is made twice: with repetitions that follow each other in the stream, and with ranks that
// were idle before each.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/comm/collectives.h"
#include "core/comm/expert_dispatch.h"

namespace moectl {

struct CommBenchOptions {
  std::string device = "auto";                        // auto | cpu | cuda
  int ep_size = 2;                                    // ranks, at least 2
  std::vector<int> devices;                           // GPU ordinals by rank; empty: 0, 1, 2, ...
  std::vector<int> tokens = {1, 16, 128, 512, 4096};  // per rank, one measurement each
  int hidden_size = 7168, top_k = 8, num_experts = 256;
  std::string dtype = "auto";  // of the tokens: auto (the narrowest that the device has) | fp8 | bf16 | f32
  // p2p | nccl | auto, as serving takes them, or both side by side; on the CPU only auto and both, which mean `local`.
  std::string collectives = "both";
  All2AllBackend backend = All2AllBackend::kAuto;  // with both: of p2p
  int iterations = 200;                // of each measurement, fewer where it would take longer than kMeasureSeconds
  std::chrono::milliseconds pause{2};  // before an iteration of idle ranks
  int num_threads = 1;                 // CPU: of all ranks together
  std::function<void(int done, int total)> progress;  // on rank 0's thread; empty: none
};
inline constexpr double kMeasureSeconds = 3;

// Over the iterations, of the slowest rank in each. Percentiles are interpolated linearly.
struct CommTimes {
  int iterations = 0;
  double p50_seconds = 0, p99_seconds = 0, max_seconds = 0;
};

struct CommResult {
  std::string operation;  // stamps (nothing between the two), barrier, all_gather, dispatch, combine, all_reduce
  // Of dispatch and combine: deterministic or fast (ExpertDispatchConfig::deterministic). Of all_reduce: the dtype of
  // the values that cross the link, "f32 wire" (serving's) or "bf16 wire" (p2p, up to kOneShotBytes).
  std::string form;
  std::optional<Collectives> collectives;  // none: stamps
  int64_t tokens = 0;                      // per rank; 0: the operation has none
  int rounds = 1;                          // ExpertDispatch::num_rounds(); times are of all rounds together
  // What one rank must send (dispatch) or receive, at least: rows of tokens and results, without choices and weights.
  // all_gather: the rows of every peer. dispatch: each token once per other rank that holds an expert of it. combine:
  // fast, as many results; deterministic, one result per choice of an expert elsewhere. Of the rank that has most.
  // all_reduce: the f32 values that are summed (algorithm bytes), whatever crosses the link.
  int64_t num_bytes = 0;
  CommTimes back_to_back, after_pause;
  uint64_t output_hash = 0;  // combine, all_reduce: of all ranks' output; equal hashes are equal bits
};

// All ranks at once, each to or from the next one.
struct LinkRate {
  std::string transfer;  // stores, loads (by threads of the device), copy engine
  int num_blocks = 0;    // of threads; 0: none
  double bytes_per_second = 0;
};

struct CommReport {
  std::string device, device_name;
  std::vector<int> devices;  // by rank; empty on the CPU
  // Ranks have a GPU each, so what they send each other crosses a link.
  bool crosses_link = false;
  DType dtype = DType::kF32, results_dtype = DType::kF32;
  double clock_step_seconds = 0;
  std::string nccl;     // nccl_version() where NCCL is measured
  std::string missing;  // with --collectives both: UsableCollectives::missing
  // The link is measured where ranks address each other's memory: not with NCCL alone.
  std::vector<LinkRate> link;
  double flag_seconds = 0;          // one way: half of what a signal and its answer take
  std::vector<CommResult> results;  // by tokens, in the order of the options; p2p, then NCCL
};

// Throws Error{kBadConfig} for options that do not fit each other or this machine, Error{kUnavailable} when a rank
// fails or does not come, Error{kInternal} when the output of combine or all_reduce changes between iterations,
// except where NCCL chooses the order of summation.
CommReport bench_comm(const CommBenchOptions& options);

}  // namespace moectl
