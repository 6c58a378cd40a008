// Which GPU this process would use, and which kernels it takes, without CUDA's types. Starts nothing on the card.
#pragma once

#include <string>

#include "kernels/gpu.h"

namespace moectl::cuda {

// Empty, or in one line what is missing for the kernels of this build: a driver, a new enough one, a card, its
// architecture.
std::string why_unusable(int device);

ComputeCapability compute_capability(int device);

// Whether the calling thread's launches may use what only Hopper has: the *_sm90.cu kernels and early starts. True
// where the current card is one, but under PortableLaunches(true), and with CUDA_FORCE_PTX_JIT=1 in the environment:
// PTX is in the binary for the plain kernels alone.
bool takes_hopper_kernels();

// Until it goes out of scope, the calling thread launches what every card has, when `portable`.
class PortableLaunches {
 public:
  explicit PortableLaunches(bool portable);
  ~PortableLaunches();
  PortableLaunches(const PortableLaunches&) = delete;
  PortableLaunches& operator=(const PortableLaunches&) = delete;

 private:
  const bool before_;
};

}  // namespace moectl::cuda
