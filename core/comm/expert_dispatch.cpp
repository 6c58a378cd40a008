#include "core/comm/expert_dispatch.h"

#include "core/comm/dispatch_parts.h"

namespace moectl {
namespace {

enum class Form { kReads, kStores, kGathers };

Form form_of(int num_ranks, const ExpertDispatchConfig& config, const Capabilities& capabilities) {
  if (num_ranks == 1) return Form::kReads;
  const All2AllBackend backend = resolve_all2all_backend(config.backend, capabilities, config.peers_addressable);
  if (!config.peers_addressable) return Form::kGathers;
  return backend == All2AllBackend::kNaive ? Form::kReads : Form::kStores;
}

}  // namespace

int64_t ExpertDispatch::max_rows(const ExpertPlacement& placement, const ExpertDispatchConfig& config) {
  const RoundShape shape = round_shape(placement, config);
  return placement.num_ranks * shape.max_tokens * shape.rows_per_token;
}

int64_t ExpertDispatch::num_bytes(const ExpertPlacement& placement, const ExpertDispatchConfig& config,
                                  const Capabilities& capabilities) {
  const int64_t common = ReceiveBuffers::num_bytes(placement, config, capabilities) + placement_bytes(placement);
  switch (form_of(placement.num_ranks, config, capabilities)) {
    case Form::kStores:
      return common + store_dispatch_bytes(placement, config, capabilities);
    case Form::kGathers:
      return common + gather_dispatch_bytes(placement, config, capabilities);
    case Form::kReads:
      break;
  }
  return common;
}

std::unique_ptr<ExpertDispatch> make_expert_dispatch(Communicator& comm, Ops& ops, const ExpertPlacement& placement,
                                                     const ExpertDispatchConfig& config) {
  const Form form = form_of(comm.size(), config, ops.capabilities());
  return form == Form::kStores    ? make_store_dispatch(comm, ops, placement, config)
         : form == Form::kGathers ? make_gather_dispatch(comm, ops, placement, config)
                                  : make_naive_dispatch(comm, ops, placement, config);
}

}  // namespace moectl
