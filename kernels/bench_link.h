// LinkBench: what `moectl bench comm` measures with: time stamps in a rank's stream, and plain traffic between two
// ranks, the rates of which bound every collective. One object per rank, used on the rank's thread; peers' memory must
// be addressable (PeerOps::connect). Functions put work into the stream; nothing is allocated after construction.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/tensor.h"
#include "kernels/device.h"
#include "kernels/peer.h"

namespace moectl {

// The memory of two ranks, 16-byte aligned; either side may be a peer's.
struct LinkCopyArgs {
  void* to = nullptr;
  const void* from = nullptr;
  int64_t num_bytes = 0;  // a multiple of 16
  // Blocks of threads that copy, of num_blocks(); 0: the copy engine.
  int num_blocks = 0;
  // Of the memory, as PeerOps::ordinal(); for the copy engine.
  int to_ordinal = 0, from_ordinal = 0;
};

// Two ranks answer each other's signals: both call, one of them with `begins`.
struct PingPongArgs {
  uint32_t* mine = nullptr;    // the signal that the peer stores, in the caller's memory
  uint32_t* theirs = nullptr;  // the signal that the caller stores, in the peer's memory
  uint32_t before = 0;         // value of both signals before the call; afterwards before + round_trips
  int round_trips = 0;
  bool begins = false;
  int peer = 0;  // rank, for PeerStatus::missing
  PeerWait wait;
};

class LinkBench {
 public:
  virtual ~LinkBench() = default;
  virtual std::string device_name() const = 0;
  // The smallest step of the clock that stamp() reads.
  virtual double clock_step_seconds() const = 0;
  // Of LinkCopyArgs, ascending; the last one: as many as the device runs at a time.
  virtual std::vector<int> num_blocks() const = 0;
  virtual bool has_copy_engine() const = 0;

  // Appends the time at which the stream gets here, in nanoseconds of the device's clock: log(0) counts the stamps,
  // which stand behind it. A stamp for which there is no room is counted, not stored.
  virtual void stamp(View<int64_t> log, Stream) = 0;
  virtual void copy(const LinkCopyArgs&, Stream) = 0;
  // Ends early after an abort, and when the peer's signal does not come in time (PeerStatus).
  virtual void ping_pong(const PingPongArgs&, Stream) = 0;
};

// For ranks on the device's kind. Blocks the host until the clock's step is measured.
std::unique_ptr<LinkBench> make_link_bench(Device& device);  // kernels/bench_kernels.cpp

}  // namespace moectl
