// Which GPU this process would use, without CUDA's types. Starts nothing on the card.
#pragma once

#include <string>

namespace moectl::cuda {

// Empty, or in one line what is missing for the kernels of this build: a driver, a new enough one, a card, its
// architecture.
std::string why_unusable(int device);

}  // namespace moectl::cuda
