// From flags to an engine: what an EngineConfig means for a checkpoint, checked (pure); Engine::create loads by it.
#pragma once

#include "core/engine/engine.h"
#include "core/engine/scheduler.h"
#include "core/model/model.h"
#include "core/parallel/expert_placement.h"
#include "kernels/ops.h"

namespace moectl {

struct EngineSetup {
  SchedulerConfig scheduler;
  ModelLimits limits;
  ExpertPlacement placement;
  LocalDims dims;  // of a rank
  DType kv_dtype = DType::kF32;
  int64_t kv_bytes_per_token = 0;
};

// The backend of a rank. Throws Error{kBadConfig} for sizes that contradict each other or the model, or that cannot run
// in this version.
OpsOptions plan_ops(const EngineConfig& engine, const Config& model, int num_cores, int rank = 0);

// Throws Error{kBadConfig} for what this backend cannot do.
void check_capabilities(const EngineConfig& engine, const Capabilities& capabilities);

// A rank's device, and what it will hold. All ranks have the same capabilities.
struct RankResources {
  Ops& ops;
  int64_t weight_bytes = 0;  // as stored in the checkpoint; for the memory plan of a GPU
};
// What the rest of `engine`, whose `collectives` are chosen, means on that backend. Throws Error{kBadConfig} that names
// the flag, what it was, what it may be.
EngineSetup plan_setup(const EngineConfig& engine, const Config& model, std::vector<int32_t> eos_token_ids,
                       const std::vector<RankResources>& ranks);

}  // namespace moectl
