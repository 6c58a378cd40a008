// PeerOps: what ranks on GPUs of one process do with each other's memory, in stream order: signals and sums. Of devices
// that have them (Device::peers()).
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/base/tensor.h"
#include "kernels/device.h"

namespace moectl {

// Of one rank, in host memory that its device reads and writes (Device::alloc_host).
struct PeerStatus {
  int32_t aborted = 0;  // host to device: 1 ends every wait
  int32_t missing = 0;  // device to host: 1 + the rank whose signal did not come in time; 0: none
};

struct PeerBarrierArgs {
  std::span<uint32_t* const> flags;  // by rank: [number of ranks] in that rank's device memory, zeros at first
  int rank = 0;                      // the caller's
  uint32_t* generation = nullptr;    // [1] in the caller's device memory: barriers so far, 0 at first
  PeerStatus* status = nullptr;      // the caller's
  int64_t timeout_ns = 0;
};

// out[i] = rows[0][i] + rows[1][i] + .., added in this order.
struct PeerSumArgs {
  std::span<const float* const> rows;  // one pointer per rank, to [out.size()]
  View<float> out;                     // may be one of the rows
};

inline constexpr int kMaxPeers = 72;

class PeerOps {
 public:
  virtual ~PeerOps() = default;
  virtual int ordinal() const = 0;
  // Lets kernels of this device address the memory of device `ordinal`; empty, or why they cannot, in one line.
  virtual std::string connect(int ordinal) = 0;
  // What every rank's stream did before is complete and visible to all ranks for what follows in their streams. After
  // an abort or a timeout, this barrier and all later ones end at once, with nothing ordered: PeerStatus tells.
  virtual void barrier(const PeerBarrierArgs&, Stream) = 0;
  virtual void sum(const PeerSumArgs&, Stream) = 0;
};

}  // namespace moectl
