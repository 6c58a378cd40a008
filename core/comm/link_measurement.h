// LinkMeasurement: one rank's part of what bench_comm() measures of the link between ranks: the rates of plain copies
// to and from a peer, and the time of a signal. On the rank's thread; all ranks at once. Peers reach its memory until
// all have ended.
#pragma once

#include <vector>

#include "core/comm/bench_comm.h"
#include "core/comm/stream_timer.h"

namespace moectl {

// Of one rank.
struct RankLinkTimes {
  LinkRate what;
  int64_t num_bytes = 0;
  Seconds seconds;
};

class LinkMeasurement {
 public:
  // Allocates. The references outlive the object; ranks of `comm` address each other's memory. `ordinals`: of the
  // ranks' devices.
  LinkMeasurement(Device& device, Communicator& comm, LinkBench& link, StreamTimer& timer, std::vector<int> ordinals,
                  bool on_gpu);
  static int64_t device_bytes(bool on_gpu);

  void run();

  std::byte* data() const { return send_.get(); }  // [num_bytes()]: what is copied
  int64_t num_bytes() const { return num_bytes_; }
  const std::vector<RankLinkTimes>& times() const { return times_; }
  const Seconds& flag_seconds() const { return flag_seconds_; }  // one way; of rank 0

 private:
  void measure_copies(const std::vector<std::byte*>& send, const std::vector<std::byte*>& receive);
  void measure_flag(const std::vector<std::byte*>& flags);
  Stream stream() const { return device_.stream(); }

  Device& device_;
  Communicator& comm_;
  LinkBench& link_;
  StreamTimer& timer_;
  const std::vector<int> ordinals_;
  const bool on_gpu_;
  const int64_t num_bytes_;
  const Buffer send_, receive_, flag_;
  std::vector<RankLinkTimes> times_;
  Seconds flag_seconds_;
};

}  // namespace moectl
