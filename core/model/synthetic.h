// Synthetic weights for a Config: a checkpoint in memory whose tensors have the names, shapes and dtypes of a
// published one and random numbers of sane size. For benchmarks; answers mean nothing.
#pragma once

#include <string>

#include "core/model/config.h"
#include "core/model/safetensors.h"

namespace moectl {

// Tensors share one block of random numbers and begin at different places of it: as many bytes as the largest tensor
// has, whatever the model's size. Equal configs give equal numbers. Throws Error{kUsage} for dtypes other than
// bf16, f32 and FP8 with block scales.
Checkpoint synthetic_checkpoint(const Config& config, const std::string& name);

}  // namespace moectl
