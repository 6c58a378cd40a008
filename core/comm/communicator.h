// Communicator: the collectives of a group of ranks. One object per rank, used on that rank's thread only; abort() may
// be called on any thread. It knows bytes and sums, nothing of models or experts.
//
// Ranks of a group make the same calls in the same order. Every wait ends: with the last rank's call, with an abort, or
// at a deadline that names the ranks that are missing. After any of the two failures the group is unusable: each call
// throws GroupAborted.
//
// Implementations, for threads of one process: `local`, memory that the host addresses; `p2p`, GPUs with peer access;
// `nccl` (nccl_comm.h), GPUs with or without. To come, behind the same interface: gloo.
//
// A rank may be in several groups: that of all ranks, whose experts it uses, and its TP group. All ranks issue the
// calls of all groups in one order.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/tensor.h"
#include "kernels/device.h"
#include "kernels/peer.h"

namespace moectl {

// The group has ended; what() is the first reason, on every rank alike.
class GroupAborted : public Error {
 public:
  explicit GroupAborted(const std::string& reason) : Error(Code::kUnavailable, reason) {}
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Whether the stream-ordered calls below may be captured in a CUDA graph: they then block no host thread.
  virtual bool capturable() const = 0;
  // Ends all waits of all ranks, on the host and on devices. Any thread; returns at once.
  virtual void abort(const std::string& reason) = 0;
  // After a stream was waited for: throws GroupAborted when a call on it ended without its peers, which leaves wrong
  // results behind.
  virtual void check() = 0;
  // For kernels of this rank that wait for its peers' signals themselves. Any thread.
  virtual PeerWait peer_wait() = 0;
  // The latest wait for its peers that the rank's device began: "combine of layer 12". Any thread.
  std::string last_operation();

  // ---- On the host: they block the thread until every rank has called, and wait for no stream. Not in a layer.

  // Makes `num_bytes` of this rank's memory known to its peers, who register a buffer of the same purpose and size in
  // the same call. Once per buffer; it must outlive the group's use of it. Returns the buffers by rank, as this rank's
  // kernels address them: null where they cannot reach that rank's memory.
  virtual std::vector<std::byte*> register_buffer(void* data, int64_t num_bytes) = 0;
  // One value of each rank, by rank: what ranks must agree on before a step (numbers of tokens).
  virtual std::vector<int64_t> all_gather_host(int64_t value) = 0;

  // ---- On a stream: what follows in the stream finds the result. They may return before that, or block the thread
  // (local: always). Buffers are parts of registered ones, at the same offsets and of the same size on every rank.

  // What every rank's stream did before is complete and visible to all ranks.
  virtual void barrier(Stream) = 0;
  // recv [size, num_bytes]: `send` of each rank. In place: `send` is each rank's own row of its `recv`.
  virtual void all_gather(const void* send, void* recv, int64_t num_bytes, Stream) = 0;
  // recv [size, num_bytes]: row `rank()` of each rank's `send` [size, num_bytes].
  virtual void all_to_all(const void* send, void* recv, int64_t num_bytes, Stream) = 0;
  // Sums over the ranks, the same bits on every rank; added in rank order, except by NCCL where it was not asked for.
  virtual void all_reduce(View<float> data, Stream) = 0;
  // recv [n]: the sum of row `rank()` of each rank's `send` [size, n]; `recv` may be that row.
  virtual void reduce_scatter(View<const float> send, View<float> recv, Stream) = 0;
};

inline constexpr std::chrono::seconds kPeerTimeout{15};

struct LocalGroupOptions {
  // Of one wait for peers that are busy: longer than a layer takes on a slow CPU. A stopped process does not use it up.
  std::chrono::milliseconds deadline{120'000};
  std::chrono::milliseconds peer_timeout = kPeerTimeout;  // p2p: of one wait on a device
  int first_rank = 0;  // the instance's rank that is this group's rank 0, for messages
  // p2p only. All-reduces of up to one_shot_bytes of f32 take one kernel, over slots of that size (2 per rank and
  // rank); 0: none do. `wire`: of the values that cross the link there, f32 or bf16; sums are of what crosses.
  int64_t one_shot_bytes = 0;
  DType wire = DType::kF32;
  // Whether an all-reduce of so many values takes one kernel.
  bool is_one_shot(int64_t num_values) const {
    return num_values % 8 == 0 && num_values * int64_t(sizeof(float)) <= one_shot_bytes;
  }
};
// one_shot_bytes of TP groups: 128 rows of 8,192. Longer all-reduces are bound by the link.
inline constexpr int64_t kOneShotBytes = int64_t{4} << 20;

// `size` communicators of one group of threads.
std::vector<std::unique_ptr<Communicator>> make_local_communicators(int size, LocalGroupOptions options = {});

// For threads with one GPU each (Device::peers()), by rank; `devices` outlive them. Throws Error{kBadConfig} where a
// GPU cannot address another's memory.
std::vector<std::unique_ptr<Communicator>> make_p2p_communicators(const std::vector<Device*>& devices,
                                                                  LocalGroupOptions options = {});
// Device memory of each rank that the slots of its all-reduces take.
int64_t p2p_slots_bytes(int size, const LocalGroupOptions& options);

}  // namespace moectl
