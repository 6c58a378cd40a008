// The communicator over NCCL, for ranks that are threads of one process with one GPU each: where GPUs cannot address
// each other's memory. Collectives may be captured in CUDA graphs. Built where nccl.h is; else collectives.cpp says so.
//
// NCCL communicators are non-blocking: a call returns before NCCL has put its work into the stream, and the rank's
// thread polls until it has. No thread is ever inside NCCL for long, so ncclCommAbort, which frees the communicator,
// never meets a call of another thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/comm/communicator.h"

namespace moectl {

class NcclLibrary;

struct NcclOptions {
  LocalGroupOptions host = {};  // waits on the host
  // Sums in rank order, bit for bit those of p2p: an exchange of slices, Device::peers()->sum, and a gathering of the
  // sums. Else NCCL's own all-reduce and reduce-scatter, whose order of summation NCCL chooses.
  bool deterministic = false;
  std::chrono::milliseconds timeout = kPeerTimeout;  // of a collective, on the device and until it is in the stream
  int64_t scratch_floats = int64_t{8} << 20;         // per rank, of a sum in rank order; longer ones go in parts
  const NcclLibrary* library = nullptr;              // for tests; null: the one of this machine
};

// Why NCCL does not serve here, in one line; empty: it does.
std::string why_no_nccl();
std::string nccl_version();  // "2.28.9 (libnccl.so.2)"

// By rank; `devices` outlive them, and no graph that was captured with them does. All connections are made here. Throws
// Error{kBadConfig} where the library is missing, ranks share a GPU, or NCCL cannot start.
std::vector<std::unique_ptr<Communicator>> make_nccl_communicators(const std::vector<Device*>& devices,
                                                                   NcclOptions options = {});

}  // namespace moectl
