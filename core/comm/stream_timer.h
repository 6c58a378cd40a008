// StreamTimer: times operations in a rank's stream between two stamps, after a barrier of the ranks; repeats them, on
// GPUs inside CUDA graphs. One object per rank, used on its thread; all ranks make the same calls in the same order.
// Knows nothing of the operations.
#pragma once

#include <chrono>
#include <functional>
#include <vector>

#include "core/comm/communicator.h"
#include "kernels/bench_link.h"

namespace moectl {

// Seconds of each iteration on one rank.
using Seconds = std::vector<double>;
struct RankTimes {
  Seconds back_to_back, after_pause;
};

class StreamTimer {
 public:
  // `iterations` of a measurement, fewer where they would take longer than `seconds`.
  struct Options {
    int iterations = 1;
    double seconds = 1;
    std::chrono::milliseconds pause{0};
  };
  // Allocates device memory; the arguments outlive the object.
  StreamTimer(Device& device, Communicator& comm, LinkBench& link, Options options);
  static int64_t num_bytes();  // of device memory

  // Puts a barrier, a stamp, the operation and a stamp into the stream.
  void timed(const std::function<void()>& operation);

  // Times of operations 0, 1, ... `repetition` calls timed() `num_timed` times: for each operation in turn, maybe
  // several times over (rounds), which are added up. What it does for the first time (registering buffers) it has done.
  using Repetition = std::function<void()>;
  std::vector<RankTimes> measure(int num_operations, int num_timed, const Repetition& repetition);
  // Of what timed() was called for since the last call, `iterations` times `num_timed`; waits for the stream.
  std::vector<Seconds> take(int num_operations, int num_timed, int iterations);

  // Returns when every rank is here and its stream is done. Throws Error{kUnavailable} when a wait ended without a
  // peer.
  void wait_for_all();

 private:
  struct Launch {
    std::function<void()> run;
    int repetitions = 1;
  };
  Launch prepare(const Repetition& repetition, int repetitions);
  int agree_on_iterations(double seconds_each, int num_timed);
  int run_back_to_back(const Repetition& repetition, int iterations);
  int run_after_pauses(const Repetition& repetition, int iterations);

  Device& device_;
  Communicator& comm_;
  LinkBench& link_;
  const Options options_;
  Buffer log_, host_log_;  // LinkBench::stamp
};

}  // namespace moectl
