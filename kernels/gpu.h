// Whether a GPU serves here. Apart from ops.h, which every kernel includes.
#pragma once

#include <string>

namespace moectl {

// Why none does and what to do, in one line; empty: one does. Starts nothing on the card.
std::string why_no_gpu(int device_index = 0);  // kernels/ops.cpp

}  // namespace moectl
