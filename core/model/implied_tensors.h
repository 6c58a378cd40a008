// The tensors that a Config implies, as a checkpoint would store them: names, dtypes and shapes, scales and zero points
// included. For what is asked before a checkpoint is there: its bytes per rank, synthetic weights.
#pragma once

#include <string>
#include <vector>

#include "core/model/config.h"
#include "core/model/safetensors.h"

namespace moectl {

struct ImpliedTensor {
  enum class Kind { kPlain, kNorm, kQuantized, kScales, kZeroPoints };
  TensorInfo info;  // no data, no file
  Kind kind = Kind::kPlain;
};

// Layer by layer; scales and zero points follow what they belong to. A config does not say which matrices its
// quantization leaves out: here, as in published checkpoints, routers, output heads, eh_proj and matrices of one row.
// What is not quantized has the dtype of Config::dtype.
std::vector<ImpliedTensor> implied_tensors(const Config& config);

// Their headers as a checkpoint. The data must not be read: it is address space without memory. `name` stands for the
// folder.
Checkpoint implied_checkpoint(const Config& config, const std::string& name);

}  // namespace moectl
