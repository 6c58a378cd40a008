// Which GPU this process would use, and of what kind the current one is, without CUDA's types. Starts nothing on the
// card.
#pragma once

#include <string>

#include "kernels/gpu.h"

namespace moectl::cuda {

// Empty, or in one line what is missing for the kernels of this build: a driver, a new enough one, a card, its
// architecture.
std::string why_unusable(int device);

ComputeCapability compute_capability(int device);

// Of the current card: whether the *_sm90.cu kernels are for it.
bool is_hopper();

}  // namespace moectl::cuda
