// From flags to an engine: what an EngineConfig means for a checkpoint, checked (pure); Engine::create loads by it.
#pragma once

#include "core/engine/engine.h"
#include "core/engine/scheduler.h"
#include "core/model/model.h"
#include "kernels/ops.h"

namespace moectl {

struct EngineSetup {
  SchedulerConfig scheduler;
  ModelLimits limits;
  DType kv_dtype = DType::kF32;
  int64_t kv_bytes_per_token = 0;
};

// The backend of every rank. Throws Error{kBadConfig} for sizes that do not divide each other.
OpsOptions plan_ops(const EngineConfig& engine, const Config& model, int num_cores);

// What the rest of `engine` means on that backend. `weight_bytes`: of the checkpoint, for the memory plan of a GPU.
// Throws Error{kBadConfig} that names the flag, what it was, what it may be.
EngineSetup plan_setup(const EngineConfig& engine, const Config& model, std::vector<int32_t> eos_token_ids,
                       const Ops& ops, int64_t weight_bytes);

}  // namespace moectl
