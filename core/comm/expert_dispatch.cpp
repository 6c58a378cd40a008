#include "core/comm/expert_dispatch.h"

#include "core/comm/dispatch_parts.h"

namespace moectl {
namespace {

// Whether ranks store into their peers' memory; else they read it. On the CPU a store costs as much as the read.
bool stores(int num_ranks, All2AllBackend backend, const Capabilities& capabilities) {
  if (num_ranks == 1 || backend == All2AllBackend::kNaive) return false;
  return backend != All2AllBackend::kAuto || !capabilities.host_readable;
}

}  // namespace

int64_t ExpertDispatch::max_rows(const ExpertPlacement& placement, const ExpertDispatchConfig& config) {
  const RoundShape shape = round_shape(placement, config);
  return placement.num_ranks * shape.max_tokens * shape.rows_per_token;
}

int64_t ExpertDispatch::num_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                                  const Capabilities& capabilities) {
  return ReceiveBuffers::num_bytes(placement, config, capabilities) + placement_bytes(placement) +
         (stores(placement.num_ranks, config.backend, capabilities)
              ? store_dispatch_bytes(placement, config, capabilities)
              : 0);
}

std::unique_ptr<ExpertDispatch> make_expert_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                     const ExpertDispatchConfig& config) {
  return stores(comm.size(), config.backend, ops.capabilities()) ? make_store_dispatch(comm, ops, placement, config)
                                                                 : make_naive_dispatch(comm, ops, placement, config);
}

}  // namespace moectl
