#include "core/comm/all2all_backend.h"

#include <fmt/format.h>

#include <vector>

#include "core/base/error.h"

namespace moectl {
namespace {

constexpr All2AllBackend kBackends[] = {All2AllBackend::kAuto, All2AllBackend::kNaive, All2AllBackend::kLowLatency,
                                        All2AllBackend::kHighThroughput};

}  // namespace

std::string_view all2all_backend_name(All2AllBackend backend) {
  switch (backend) {
    case All2AllBackend::kAuto:
      return "auto";
    case All2AllBackend::kNaive:
      return "naive";
    case All2AllBackend::kLowLatency:
      return "low_latency";
    case All2AllBackend::kHighThroughput:
      return "high_throughput";
  }
  throw Error(Code::kInternal, fmt::format("no all-to-all backend {}", int(backend)));
}

All2AllBackend parse_all2all_backend(std::string_view name) {
  std::vector<std::string_view> names;
  for (const All2AllBackend backend : kBackends) {
    names.push_back(all2all_backend_name(backend));
    if (names.back() == name) return backend;
  }
  throw Error(Code::kBadConfig, fmt::format("--all2all-backend {}: expected one of {}", name, fmt::join(names, ", ")));
}

All2AllBackend resolve_all2all_backend(All2AllBackend backend, const Capabilities& capabilities,
                                       bool peers_addressable) {
  if (backend == All2AllBackend::kAuto)
    return capabilities.host_readable || !peers_addressable ? All2AllBackend::kNaive : backend;
  if (backend != All2AllBackend::kNaive && !peers_addressable)
    throw Error(Code::kBadConfig,
                fmt::format("--all2all-backend {} stores into the memory of other GPUs, which these cannot reach "
                            "(--collectives nccl): use auto or naive",
                            all2all_backend_name(backend)));
  return backend;
}

}  // namespace moectl
