// Capabilities: what a backend lets the scheduler, the planner and the loader do. Plain data, constant over the life of
// an Ops. Policies follow from it, never from where memory is.
#pragma once

#include <string>
#include <vector>

#include "core/base/dtype.h"

namespace moectl {

struct Capabilities {
  std::string device = "cpu";   // cpu | cuda
  int max_steps_in_flight = 1;  // 2: the device runs steps in stream order while the host plans the next one
  bool asynchronous = false;    // the device executes by itself: a call returns before its work is done
  bool host_readable = true;    // host code may read and write Device::alloc() memory: logits, pages of the KV cache
  bool limited_memory = false;  // Device::memory() is a limit: a memory plan is made before loading
  bool splits_scale_blocks = true;  // a rank's part of a quantized matrix may begin and end inside a scale block
  bool kv_transfer = true;          // pages may be sent to and filled by other workers
  int default_step_tokens = 512;    // --max-num-batched-tokens when it is not given
  std::vector<DType> kv_dtypes = {DType::kF32};       // of the KV cache, the default first
  std::vector<DType> operand_dtypes = {DType::kF32};  // that Weight::operand may be
};

}  // namespace moectl
