// PeerOps: what ranks on GPUs of one process do with each other, in stream order: signals, sums, calls of a library. Of
// devices that have them (Device::peers()). Also what every kernel that waits for peers is given: PeerWait.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "core/base/dtype.h"
#include "core/base/tensor.h"
#include "kernels/device.h"

namespace moectl {

// What a rank does when it waits for its peers, as one number that a device can report.
struct PeerOperation {
  enum Kind : int32_t { kNone, kBarrier, kDispatch, kCombine, kAllGather, kAllToAll, kAllReduce, kReduceScatter };
  Kind kind = kNone;
  int32_t layer = -1;  // -1: not in a layer
  constexpr int32_t code() const { return int32_t(kind) + ((layer + 1) << 4); }
  static PeerOperation of_code(int32_t code) { return {Kind(code & 15), (code >> 4) - 1}; }
};

// Of one rank, in host memory that its device reads and writes (Device::alloc_host).
struct PeerStatus {
  int32_t aborted = 0;    // host to device: 1 ends every wait
  int32_t missing = 0;    // device to host: 1 + the rank whose signal did not come in time; 0: none
  int32_t operation = 0;  // device to host, with `missing`: PeerOperation::code of that wait
  int32_t at = 0;         // device to host: PeerOperation::code of the latest wait that began
  uint32_t marks = 0;     // device to host: PeerOps::mark() so far
};

// A wait for signals of peers is bounded. After an abort or a timeout it and all later ones of the rank end at once,
// with nothing ordered: PeerStatus tells.
struct PeerWait {
  PeerStatus* status = nullptr;  // the caller's
  // [1] in the caller's device memory, 0 at first: 1 once a wait ended without its signal; the caller signals no more.
  // Null on the CPU, where PeerStatus serves.
  uint32_t* ended = nullptr;
  int64_t timeout_ns = 0;
};

struct PeerBarrierArgs {
  std::span<uint32_t* const> flags;  // by rank: [number of ranks] in that rank's device memory, zeros at first
  int rank = 0;                      // the caller's
  uint32_t* generation = nullptr;    // [1] in the caller's device memory: barriers so far, 0 at first
  PeerWait wait;
};

// out[i] = rows[0][i] + rows[1][i] + .., added in this order.
struct PeerSumArgs {
  std::span<const float* const> rows;  // one pointer per rank, to [out.size()]
  View<float> out;                     // may be one of the rows
};

// A collective of a library (NCCL) begins or ends: `marks` is odd while one runs.
struct PeerMarkArgs {
  PeerStatus* status = nullptr;   // the caller's
  uint32_t* num_marks = nullptr;  // [1] in the caller's device memory, 0 at first
  PeerOperation operation;        // for PeerStatus::at
};

// data += the peers' data, in one kernel: for messages of up to a few MB. The sum is rounded from values of `wire`,
// added in rank order: all ranks get the same bits.
struct PeerAllReduceArgs {
  std::span<uint32_t* const> flags;   // by rank: [kAllReduceBlocks, number of ranks] in its memory, zeros at first
  std::span<std::byte* const> slots;  // by rank: [2, number of ranks, slot_bytes] in its memory
  int64_t slot_bytes = 0;             // a multiple of 16
  uint32_t* state = nullptr;          // [2] in the caller's memory, zeros at first
  PeerWait wait;
  int rank = 0;  // the caller's
  int32_t layer = -1;
  DType wire = DType::kF32;  // of the values that cross the link: f32 or bf16
  View<float> data;          // a multiple of 8 values
};
inline constexpr int kAllReduceBlocks = 32;  // at most, on every rank

inline constexpr int kMaxPeers = 32;

class PeerOps {
 public:
  virtual ~PeerOps() = default;
  virtual int ordinal() const = 0;
  // Lets kernels of this device address the memory of device `ordinal`; empty, or why they cannot, in one line.
  virtual std::string connect(int ordinal) = 0;
  // What every rank's stream did before is complete and visible to all ranks for what follows in their streams.
  virtual void barrier(const PeerBarrierArgs&, Stream) = 0;
  virtual void sum(const PeerSumArgs&, Stream) = 0;
  virtual void mark(const PeerMarkArgs&, Stream) = 0;
  // Runs call(stream) with this device as the calling thread's, for a library that puts work into streams itself; later
  // errors name `operation`.
  virtual void launch(const char* operation, Stream, const std::function<void(Stream)>& call) = 0;
  virtual void all_reduce(const PeerAllReduceArgs&, Stream) = 0;
};

}  // namespace moectl
