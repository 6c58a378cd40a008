// Which GPU this process would use, and of what kind the current one is, without CUDA's types. Starts nothing on the
// card.
#pragma once

#include <string>

namespace moectl::cuda {

// Empty, or in one line what is missing for the kernels of this build: a driver, a new enough one, a card, its
// architecture.
std::string why_unusable(int device);

// Whether the current card has compute capability 9.0, for which the *_sm90.cu kernels are.
bool is_hopper();

}  // namespace moectl::cuda
