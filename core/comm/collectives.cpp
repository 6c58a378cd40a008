#include "core/comm/collectives.h"

#include "core/base/log.h"
#include "core/comm/nccl_comm.h"
#include "kernels/peer.h"

namespace moectl {
namespace {

// Empty, or the first pair of GPUs without peer access. What can be connected is.
std::string why_no_peer_access(const std::vector<Device*>& devices) {
  for (Device* device : devices)
    for (Device* other : devices)
      if (std::string why = device->peers()->connect(other->peers()->ordinal()); !why.empty()) return why;
  return {};
}

}  // namespace

#if !defined(MOECTL_HAVE_NCCL)
std::string why_no_nccl() {
  return "this moectl was built without NCCL: nccl.h was not found (scripts/install-deps brings it)";
}
std::string nccl_version() {
  return {};
}
std::vector<std::unique_ptr<Communicator>> make_nccl_communicators(const std::vector<Device*>&, NcclOptions) {
  throw Error(Code::kBadConfig, why_no_nccl());
}
#endif

std::string_view collectives_name(Collectives collectives) {
  constexpr std::string_view kNames[] = {"auto", "p2p", "nccl", "local"};
  return kNames[size_t(collectives)];
}

Collectives parse_collectives(std::string_view name) {
  for (const Collectives c : {Collectives::kAuto, Collectives::kP2p, Collectives::kNccl})
    if (name == collectives_name(c)) return c;
  throw Error(Code::kBadConfig, fmt::format("--collectives {}: expected auto, p2p or nccl", name));
}

Collectives choose_collectives(Collectives wanted, const std::vector<Device*>& devices,
                               const std::function<std::string()>& why_no_nccl) {
  if (devices.size() == 1) return Collectives::kLocal;
  if (!devices.front()->peers()) {
    if (wanted == Collectives::kAuto) return Collectives::kLocal;
    throw Error(Code::kBadConfig, fmt::format("--collectives {} is for ranks on GPUs, and these are on the CPU: leave "
                                              "it away, or use --device cuda",
                                              collectives_name(wanted)));
  }
  if (wanted == Collectives::kNccl) {
    if (const std::string why = why_no_nccl(); !why.empty())
      throw Error(Code::kBadConfig, "--collectives nccl: " + why);
    return wanted;
  }
  const std::string why_no_p2p = why_no_peer_access(devices);
  if (why_no_p2p.empty()) return Collectives::kP2p;
  if (wanted == Collectives::kP2p)
    throw Error(Code::kBadConfig,
                fmt::format("--collectives p2p: {}; use --collectives nccl, or GPUs that have it", why_no_p2p));
  if (const std::string why = why_no_nccl(); !why.empty())
    throw Error(Code::kBadConfig, fmt::format("{}, and NCCL, which works without, does not serve: {}; or run these "
                                              "ranks on GPUs that have peer access (--devices)",
                                              why_no_p2p, why));
  log::warn("collectives over NCCL: {}", why_no_p2p);
  return Collectives::kNccl;
}

Collectives choose_collectives(Collectives wanted, const std::vector<Device*>& devices) {
  return choose_collectives(wanted, devices, why_no_nccl);
}

UsableCollectives usable_collectives(const std::vector<Device*>& devices,
                                     const std::function<std::string()>& why_no_nccl) {
  if (!devices.front()->peers()) return {{Collectives::kLocal}, {}};
  const std::string shared = shared_gpu(devices), no_nccl = shared.empty() ? why_no_nccl() : shared;
  const std::string no_p2p = why_no_peer_access(devices);
  if (no_p2p.empty() && no_nccl.empty()) return {{Collectives::kP2p, Collectives::kNccl}, {}};
  if (no_p2p.empty()) return {{Collectives::kP2p}, "NCCL is not measured: " + no_nccl};
  if (no_nccl.empty()) return {{Collectives::kNccl}, "p2p is not measured: " + no_p2p};
  return {{choose_collectives(Collectives::kAuto, devices, [&] { return no_nccl; })}, {}};  // throws, and says all
}

std::string shared_gpu(const std::vector<Device*>& devices) {
  for (size_t r = 0; r < devices.size(); ++r)
    for (size_t other = 0; other < r; ++other)
      if (const int gpu = devices[r]->peers()->ordinal(); devices[other]->peers()->ordinal() == gpu)
        return fmt::format("ranks {} and {} share GPU {}, and NCCL takes one rank per GPU", other, r, gpu);
  return {};
}

std::vector<std::unique_ptr<Communicator>> make_communicators(Collectives chosen, const std::vector<Device*>& devices,
                                                              bool deterministic, const LocalGroupOptions& options) {
  if (chosen == Collectives::kLocal || devices.size() == 1)
    return make_local_communicators(int(devices.size()), options);
  if (chosen == Collectives::kP2p) return make_p2p_communicators(devices, options);
  auto communicators = make_nccl_communicators(devices, {.host = options, .deterministic = deterministic});
  log::info("collectives of {} ranks over NCCL {}", devices.size(), nccl_version());
  return communicators;
}

}  // namespace moectl
