// Whether a GPU serves here, and for which cards a build has kernels. Apart from ops.h, which every kernel includes.
#pragma once

#include <string>

namespace moectl {

// Why none does and what to do, in one line; empty: one does. Starts nothing on the card.
std::string why_no_gpu(int device_index = 0);  // kernels/ops.cpp

// Before anything else uses a GPU: this process loads every kernel when a GPU is first used, not when a kernel is first
// launched. Loading waits for the device, which may itself wait for a peer (ranks that exchange rows).
void load_kernels_eagerly();

struct ComputeCapability {
  int major = 0, minor = 0;
};

// What is compiled of the plain kernels (MOECTL_CUDA_PORTABLE). Those of Hopper alone are in either build.
enum class PlainKernels { kEveryCard, kHopper };

// 9.0: the one capability for which the *_sm90.cu kernels are.
bool is_hopper(ComputeCapability card);

// Empty, or why `card` cannot run a build's kernels, and what to do: "... compute capability 8.9, and ...".
std::string why_no_kernels(ComputeCapability card, PlainKernels plain);

}  // namespace moectl
