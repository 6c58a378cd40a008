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
  OpsOptions ops;  // of every rank
  int64_t kv_bytes_per_token = 0;
};

// Throws Error{kBadConfig} that names the flag, what it was, what it may be.
EngineSetup plan_setup(const EngineConfig& engine, const Config& model, std::vector<int32_t> eos_token_ids,
                       int num_cores);

}  // namespace moectl
