// NcclGroup: the NCCL communicators of one process's ranks, their life and their end. issue() may be called by each
// rank's thread for its rank, abort() by any thread. A thread of the group's own watches: it ends the group when a
// collective takes longer than the timeout, when NCCL reports an error, and after abort().
#pragma once

#include <nccl.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/comm/local_group.h"
#include "core/comm/nccl_comm.h"
#include "core/comm/nccl_library.h"
#include "kernels/peer.h"

namespace moectl {

class NcclGroup : public std::enable_shared_from_this<NcclGroup> {
 public:
  NcclGroup(const std::vector<Device*>& devices, const NcclOptions& options);

  // Creates the NCCL communicators and runs every collective once, so that later ones find their connections.
  void start();
  // Ends communicators and thread, after the last call of every rank. Bounded: what does not end by then is left alone.
  void stop();

  int size() const { return int(ranks_.size()); }
  LocalGroup& host() { return host_; }
  Device& device(int rank) { return *ranks_[size_t(rank)]->device; }
  PeerStatus& status(int rank) { return *reinterpret_cast<PeerStatus*>(ranks_[size_t(rank)]->status.get()); }
  const NcclOptions& options() const { return options_; }
  const NcclFunctions& nccl() const { return library_.functions(); }

  // Calls of one collective, made between ncclGroupStart and ncclGroupEnd; the first result that is no success counts.
  using Calls = std::function<ncclResult_t(ncclComm_t, cudaStream_t)>;
  // Puts the calls into the stream. Throws Error{kUnavailable} after a failure of any rank.
  void issue(int rank, PeerOperation operation, Stream stream, const Calls& calls);
  void abort(const std::string& reason);  // returns at once
  void check(int rank);                   // Communicator::check

 private:
  struct Rank {
    Device* device;
    Buffer status, num_marks;
    std::mutex mutex;           // of every NCCL call with `comm`
    ncclComm_t comm = nullptr;  // null once the group ends
    // Watching thread.
    uint32_t marks = 0;
    int num_ticks = 0;  // without a mark
  };

  void begin(int rank, PeerOperation operation, Stream stream, const Calls& calls);
  void finish(int rank, PeerOperation operation, Stream stream);
  void wait_until_ready(int rank, const char* what, std::chrono::milliseconds limit);
  ncclResult_t state_of(int rank);
  void warm_up();
  void mark(int rank, PeerOperation operation, Stream stream);
  std::string failure(const std::string& what, ncclResult_t result, ncclComm_t comm) const;

  void watch();
  void look_at(int rank);
  std::vector<ncclComm_t> take_communicators();
  bool finalize(const std::vector<ncclComm_t>& comms);

  const NcclLibrary& library_;
  const NcclOptions options_;
  LocalGroup host_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::thread thread_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool abort_ = false, stop_ = false, ended_ = false;  // ended_: the thread is about to return
};

}  // namespace moectl
