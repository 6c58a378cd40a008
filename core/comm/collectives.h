// --collectives: which communicator the ranks of a process get. The one place that knows which ones this build has.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/comm/communicator.h"

namespace moectl {

enum class Collectives {
  kAuto,   // p2p where every pair of GPUs has peer access, else NCCL
  kP2p,    // GPUs store signals into each other's memory and read it
  kNccl,   // NVIDIA's library
  kLocal,  // ranks on the CPU, or a rank alone; no value of the flag
};

Collectives parse_collectives(std::string_view name);  // throws Error{kBadConfig} that names the allowed ones
std::string_view collectives_name(Collectives collectives);

// What `wanted` means for ranks on these devices, never kAuto. why_no_nccl: asked only where NCCL is wanted or is what
// remains. Throws Error{kBadConfig} where the GPUs cannot do what is wanted, or can do nothing; the message says what
// to do.
Collectives choose_collectives(Collectives wanted, const std::vector<Device*>& devices,
                               const std::function<std::string()>& why_no_nccl);
Collectives choose_collectives(Collectives wanted, const std::vector<Device*>& devices);  // with this machine's NCCL

// What `bench comm` measures side by side on these devices: p2p and NCCL where both are available. Throws
// Error{kBadConfig} where neither is.
struct UsableCollectives {
  std::vector<Collectives> all;  // in this order; ranks on the CPU: kLocal
  std::string missing;           // which of the two is not available and why, in one line; empty: none, or kLocal
};
UsableCollectives usable_collectives(const std::vector<Device*>& devices,
                                     const std::function<std::string()>& why_no_nccl);

// Empty, or which ranks share a GPU: NCCL takes one rank per GPU.
std::string shared_gpu(const std::vector<Device*>& devices);

// One group of these devices, by rank; `chosen` by choose_collectives(). deterministic: every sum is added in rank
// order.
std::vector<std::unique_ptr<Communicator>> make_communicators(Collectives chosen, const std::vector<Device*>& devices,
                                                              bool deterministic,
                                                              const LocalGroupOptions& options = {});

}  // namespace moectl
