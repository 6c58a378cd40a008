#include "core/comm/bench_comm.h"

#include <algorithm>
#include <thread>

#include "core/comm/bench_groups.h"
#include "core/comm/bench_rank.h"
#include "core/comm/nccl_comm.h"
#include "kernels/gpu.h"

namespace moectl {
namespace {

template <class... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) throw Error(Code::kBadConfig, fmt::format(format, std::forward<Args>(args)...));
}

int ordinal_of(const CommBenchOptions& o, int rank) {
  return o.devices.empty() ? rank : o.devices[size_t(rank)];
}

void check_options(const CommBenchOptions& o) {
  require(o.ep_size >= 2 && o.ep_size <= kMaxPeers, "--ep-size {}: a group has 2 to {} ranks", o.ep_size, kMaxPeers);
  require(o.devices.empty() || int(o.devices.size()) == o.ep_size,
          "--devices names {} GPU(s) for {} ranks: name one per rank, or leave it out", o.devices.size(), o.ep_size);
  require(!o.tokens.empty() && std::ranges::min(o.tokens) >= 1, "--tokens: expected numbers of 1 or more");
  require(o.hidden_size >= 1, "--hidden-size {}: expected 1 or more", o.hidden_size);
  require(o.top_k >= 1 && o.top_k <= o.num_experts, "--top-k {}: there are {} experts (--num-experts)", o.top_k,
          o.num_experts);
  require(o.iterations >= 1, "--iterations {}: expected 1 or more", o.iterations);
}

// Whether ranks run on GPUs. auto: where every rank has one.
bool takes_gpus(const CommBenchOptions& o) {
  if (o.device == "cpu") return false;
  load_kernels_eagerly();
  for (int r = 0; r < o.ep_size; ++r) {
    const std::string why = why_no_gpu(ordinal_of(o, r));
    if (why.empty()) continue;
    require(o.device == "auto",
            "--device cuda, rank {} of {}: {}; name other GPUs with --devices (0,0 puts two ranks on one), or use "
            "--device cpu",
            r, o.ep_size, why);
    return false;
  }
  return true;
}

DType token_dtype(const CommBenchOptions& o, const Ops& ops) {
  const std::vector<DType>& known = ops.capabilities().operand_dtypes;
  const auto fits = [&](DType t) { return t != DType::kF8E4M3 || o.hidden_size % kFp8Block == 0; };
  if (o.dtype == "auto") {
    DType narrowest = DType::kF32;
    for (const DType t : known)
      if (fits(t) && dtype_bytes(t) < dtype_bytes(narrowest)) narrowest = t;
    return narrowest;
  }
  const DType wanted = o.dtype == "fp8" ? DType::kF8E4M3 : o.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  require(o.dtype == "fp8" || o.dtype == "bf16" || o.dtype == "f32", "--dtype {}: expected auto, fp8, bf16 or f32",
          o.dtype);
  require(std::ranges::find(known, wanted) != known.end(),
          "--dtype {}: the backend {} has no activations of it; use auto", o.dtype, ops.numerics_id());
  require(fits(wanted), "--dtype fp8: --hidden-size {} is no multiple of {}", o.hidden_size, kFp8Block);
  return wanted;
}

std::vector<std::unique_ptr<Ops>> make_rank_ops(const CommBenchOptions& o, bool on_gpu) {
  const int num_threads = std::max(1, o.num_threads / o.ep_size);
  std::vector<std::unique_ptr<Ops>> all;
  for (int r = 0; r < o.ep_size; ++r)
    all.push_back(make_ops({.device = on_gpu ? "cuda" : "cpu",
                            .num_threads = num_threads,
                            .spin = num_threads * o.ep_size <= int(std::thread::hardware_concurrency()),
                            .device_index = ordinal_of(o, r),
                            .has_peers = true}));
  return all;
}

// Before anything is allocated.
void check_memory(const CommBenchSetup& setup, const std::vector<std::unique_ptr<Ops>>& ops) {
  for (size_t r = 0; r < ops.size(); ++r) {
    if (!ops[r]->capabilities().limited_memory) continue;
    const int64_t sharing = std::ranges::count(setup.ordinals, setup.ordinals[r]);
    const int64_t needed = BenchRank::num_bytes(setup, *ops[r]) * sharing;
    const int64_t free = ops[r]->device().memory().free_bytes;
    require(needed <= free, "{} rank(s) need {:.2f} GB on GPU {}, where {:.2f} GB are free; lower --tokens ({})",
            sharing, double(needed) / 1e9, setup.ordinals[r], double(free) / 1e9, setup.max_tokens());
  }
}

// As --collectives says; on the CPU `local`. Sets CommReport::missing.
std::vector<Collectives> collectives_of(const CommBenchOptions& o, const std::vector<Device*>& devices,
                                        std::string& missing) {
  if (o.collectives != "both") return {choose_collectives(parse_collectives(o.collectives), devices)};
  UsableCollectives usable = usable_collectives(devices, why_no_nccl);
  missing = std::move(usable.missing);
  return usable.all;
}

// One group per implementation, with the options that TP groups have in serving; p2p also with a bf16 wire. Where NCCL
// cannot start, only p2p is left in `setup`.
std::vector<CommBenchGroup> make_groups(CommBenchSetup& setup, const std::vector<Device*>& devices,
                                        std::string& missing) {
  std::vector<CommBenchGroup> groups;
  for (const Collectives c : std::vector(setup.collectives)) {
    LocalGroupOptions options = {.one_shot_bytes = kOneShotBytes};
    try {
      groups.push_back({.collectives = c, .by_rank = make_communicators(c, devices, false, options)});
    } catch (const Error& e) {
      if (groups.empty() || e.code() != Code::kBadConfig) throw;
      missing = fmt::format("NCCL is not measured: {}", e.what());
      std::erase(setup.collectives, c);
    }
    if (c != Collectives::kP2p) continue;
    options.wire = DType::kBF16;
    groups.push_back(
        {.collectives = c, .wire = options.wire, .by_rank = make_communicators(c, devices, false, options)});
  }
  return groups;
}

}  // namespace

CommReport bench_comm(const CommBenchOptions& options) {
  check_options(options);
  auto setup = std::make_shared<CommBenchSetup>();
  setup->options = options;
  setup->on_gpu = takes_gpus(options);
  setup->placement = make_placement(options.num_experts, options.ep_size);
  for (int r = 0; r < options.ep_size; ++r) setup->ordinals.push_back(setup->on_gpu ? ordinal_of(options, r) : 0);
  const std::vector<std::unique_ptr<Ops>> ops = make_rank_ops(options, setup->on_gpu);
  setup->dtype = token_dtype(options, *ops.front());
  setup->results_dtype = setup->dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
  std::vector<Device*> devices;
  for (const auto& o : ops) devices.push_back(&o->device());
  std::string missing;
  setup->collectives = collectives_of(options, devices, missing);
  check_memory(*setup, ops);
  const std::vector<CommBenchGroup> groups = make_groups(*setup, devices, missing);
  CommReport report = measure_groups(setup, ops, groups);
  report.missing = missing;
  if (setup->measures(Collectives::kNccl)) report.nccl = nccl_version();
  return report;
}

}  // namespace moectl
