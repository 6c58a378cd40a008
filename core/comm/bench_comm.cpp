#include "core/comm/bench_comm.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <set>
#include <thread>

#include "core/base/check.h"
#include "core/comm/bench_rank.h"
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

// One thread per rank; throws what the first rank to fail threw, when all have ended and no device works any more.
void run_ranks(const std::vector<std::unique_ptr<BenchRank>>& ranks) {
  std::vector<std::thread> threads;
  std::exception_ptr error;
  std::mutex mutex;
  for (const auto& rank : ranks)
    threads.emplace_back([&] {
      try {
        rank->run();
      } catch (const std::exception& e) {
        {
          std::lock_guard lock(mutex);
          if (!error) error = std::current_exception();
        }
        rank->abort(e.what());
      }
      rank->drain();
    });
  for (std::thread& t : threads) t.join();
  if (error) std::rethrow_exception(error);
}

// ------------------------------------------------------------------------------------------------ of all ranks

double percentile(const Seconds& sorted, double part) {
  const double place = part * double(sorted.size() - 1);
  const auto below = size_t(place), above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - double(below));
}

// Of each iteration.
Seconds slowest(const std::vector<const Seconds*>& by_rank) {
  Seconds most = *by_rank.front();
  for (const Seconds* seconds : by_rank) {
    CHECK(seconds->size() == most.size(), "{} and {} iterations", seconds->size(), most.size());
    for (size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], (*seconds)[i]);
  }
  return most;
}

CommTimes times_of(const std::vector<const Seconds*>& by_rank) {
  Seconds seconds = slowest(by_rank);
  std::ranges::sort(seconds);
  return {.iterations = int(seconds.size()),
          .p50_seconds = percentile(seconds, 0.50),
          .p99_seconds = percentile(seconds, 0.99),
          .max_seconds = seconds.back()};
}

template <class Part>
std::vector<const Seconds*> of_ranks(const std::vector<std::unique_ptr<BenchRank>>& ranks, Part&& part) {
  std::vector<const Seconds*> all;
  for (const auto& rank : ranks) all.push_back(&part(*rank));
  return all;
}

std::vector<LinkRate> link_rates(const std::vector<std::unique_ptr<BenchRank>>& ranks) {
  std::vector<LinkRate> rates;
  for (size_t i = 0; i < ranks.front()->link_times().size(); ++i) {
    const RankLinkTimes& first = ranks.front()->link_times()[i];
    const auto seconds = [i](const BenchRank& r) -> const Seconds& { return r.link_times()[i].seconds; };
    rates.push_back(first.what);
    rates.back().bytes_per_second = double(first.num_bytes) / std::ranges::min(slowest(of_ranks(ranks, seconds)));
  }
  return rates;
}

CommResult merged(const std::vector<std::unique_ptr<BenchRank>>& ranks, size_t i) {
  CommResult all = ranks.front()->results()[i].what;
  for (const auto& rank : ranks) {
    const CommResult& one = rank->results()[i].what;
    CHECK(one.operation == all.operation && one.form == all.form && one.tokens == all.tokens,
          "ranks measured {} and {}", all.operation, one.operation);
    all.num_bytes = std::max(all.num_bytes, one.num_bytes);
    if (rank != ranks.front()) all.output_hash = all.output_hash * 0x100000001b3ull ^ one.output_hash;
  }
  all.back_to_back = times_of(
      of_ranks(ranks, [i](const BenchRank& r) -> const Seconds& { return r.results()[i].times.back_to_back; }));
  all.after_pause =
      times_of(of_ranks(ranks, [i](const BenchRank& r) -> const Seconds& { return r.results()[i].times.after_pause; }));
  return all;
}

}  // namespace

CommReport bench_comm(const CommBenchOptions& options) {
  check_options(options);
  auto setup = std::make_shared<CommBenchSetup>();
  setup->options = options;
  setup->on_gpu = takes_gpus(options);
  setup->placement = make_placement(options.num_experts, options.ep_size);
  for (int r = 0; r < options.ep_size; ++r) setup->ordinals.push_back(setup->on_gpu ? ordinal_of(options, r) : 0);
  std::vector<std::unique_ptr<Ops>> ops = make_rank_ops(options, setup->on_gpu);
  setup->dtype = token_dtype(options, *ops.front());
  setup->results_dtype = setup->dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
  check_memory(*setup, ops);

  std::vector<Device*> devices;
  for (const auto& o : ops) devices.push_back(&o->device());
  auto comms = setup->on_gpu ? make_p2p_communicators(devices) : make_local_communicators(options.ep_size);
  std::vector<std::unique_ptr<BenchRank>> ranks;
  for (size_t r = 0; r < ops.size(); ++r)
    ranks.push_back(std::make_unique<BenchRank>(setup, std::move(ops[r]), std::move(comms[r])));
  run_ranks(ranks);

  CommReport report = {.device = setup->on_gpu ? "cuda" : "cpu",
                       .device_name = ranks.front()->link().device_name(),
                       .dtype = setup->dtype,
                       .results_dtype = setup->results_dtype,
                       .link = link_rates(ranks)};
  if (setup->on_gpu) report.devices = setup->ordinals;
  report.crosses_link = std::set(report.devices.begin(), report.devices.end()).size() == size_t(options.ep_size);
  for (const auto& rank : ranks)
    report.clock_step_seconds = std::max(report.clock_step_seconds, rank->link().clock_step_seconds());
  Seconds flag = ranks.front()->flag_seconds();
  std::ranges::sort(flag);
  report.flag_seconds = percentile(flag, 0.50);
  for (size_t i = 0; i < ranks.front()->results().size(); ++i) report.results.push_back(merged(ranks, i));
  const auto place = [&](const CommResult& r) {
    return std::ranges::find(options.tokens, r.tokens) - options.tokens.begin();
  };
  std::ranges::stable_sort(report.results, {}, [&](const CommResult& r) { return r.tokens == 0 ? -1 : place(r); });
  return report;
}

}  // namespace moectl
