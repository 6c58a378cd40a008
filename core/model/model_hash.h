// Which model a checkpoint is, in a few dozen characters: what prefill and decode workers compare before KV travels
// between them.
#pragma once

#include <string>

#include "core/model/safetensors.h"

namespace moectl {

// XXH3-128, in hex, over config.json, every tensor's name, dtype and shape, and the first 256 bytes of each tensor. It
// tells fine-tunes and revisions apart without reading the weights; how tensors are spread over files does not matter.
// It is no defence against somebody who forges a checkpoint. Throws Error{kNotFound} when config.json is missing,
// Error{kBadData} when it is too large.
std::string model_hash(const Checkpoint& checkpoint);

}  // namespace moectl
