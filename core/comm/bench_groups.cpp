#include "core/comm/bench_groups.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <set>
#include <thread>

#include "core/base/check.h"
#include "core/comm/bench_rank.h"
#include "kernels/expert_all_to_all.h"

namespace moectl {
namespace {

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
  if (!ranks.front()->link_measurement()) return rates;
  for (size_t i = 0; i < ranks.front()->link_measurement()->times().size(); ++i) {
    const RankLinkTimes& first = ranks.front()->link_measurement()->times()[i];
    const auto seconds = [i](const BenchRank& r) -> const Seconds& { return r.link_measurement()->times()[i].seconds; };
    rates.push_back(first.what);
    rates.back().bytes_per_second = double(first.num_bytes) / std::ranges::min(slowest(of_ranks(ranks, seconds)));
  }
  return rates;
}

CommResult merged(const std::vector<std::unique_ptr<BenchRank>>& ranks, size_t i) {
  CommResult all = ranks.front()->results()[i].what;
  for (const auto& rank : ranks) {
    const CommResult& one = rank->results()[i].what;
    CHECK(one.operation == all.operation && one.form == all.form && one.tokens == all.tokens &&
              one.collectives == all.collectives,
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

// By tokens, in the order of the options; then the same operation of every group, in the order of the groups.
void sort_results(std::vector<CommResult>& results, const std::vector<int>& tokens) {
  std::vector<std::pair<std::string, std::string>> kinds;
  const auto kind_of = [&](const CommResult& r) {
    const auto kind = std::ranges::find(kinds, std::pair(r.operation, r.form));
    const auto place = kind - kinds.begin();
    if (kind == kinds.end()) kinds.emplace_back(r.operation, r.form);
    return place;
  };
  for (const CommResult& r : results) kind_of(r);
  std::ranges::stable_sort(results, {}, [&](const CommResult& r) {
    return std::pair(r.tokens == 0 ? -1 : std::ranges::find(tokens, r.tokens) - tokens.begin(), kind_of(r));
  });
}

}  // namespace

int64_t CommBenchSetup::max_tokens() const {
  return std::ranges::max(options.tokens);
}

int64_t CommBenchSetup::token_bytes() const {
  return packed_row_bytes(dtype, options.hidden_size);
}

int64_t CommBenchSetup::result_bytes() const {
  return int64_t{options.hidden_size} * dtype_bytes(results_dtype);
}

bool CommBenchSetup::measures(Collectives one) const {
  return std::ranges::find(collectives, one) != collectives.end();
}

ExpertDispatchConfig CommBenchSetup::dispatch_config(Collectives one, bool deterministic) const {
  const bool beside_others = one == Collectives::kNccl && collectives.size() > 1;
  return {.top_k = options.top_k,
          .hidden_size = options.hidden_size,
          .backend = beside_others ? All2AllBackend::kAuto : options.backend,  // NCCL has one
          .deterministic = deterministic,
          .peers_addressable = one != Collectives::kNccl,
          .max_tokens = int(max_tokens())};
}

CommReport measure_groups(std::shared_ptr<const CommBenchSetup> setup, const std::vector<std::unique_ptr<Ops>>& ops,
                          const std::vector<CommBenchGroup>& groups) {
  std::vector<std::unique_ptr<BenchRank>> ranks;
  for (size_t r = 0; r < ops.size(); ++r) ranks.push_back(std::make_unique<BenchRank>(setup, *ops[r], groups, int(r)));
  run_ranks(ranks);

  CommReport report = {.device = setup->on_gpu ? "cuda" : "cpu",
                       .device_name = ranks.front()->link().device_name(),
                       .dtype = setup->dtype,
                       .results_dtype = setup->results_dtype,
                       .link = link_rates(ranks)};
  if (setup->on_gpu) report.devices = setup->ordinals;
  report.crosses_link = std::set(report.devices.begin(), report.devices.end()).size() == ops.size();
  for (const auto& rank : ranks)
    report.clock_step_seconds = std::max(report.clock_step_seconds, rank->link().clock_step_seconds());
  if (const LinkMeasurement* link = ranks.front()->link_measurement()) {
    Seconds flag = link->flag_seconds();
    std::ranges::sort(flag);
    report.flag_seconds = percentile(flag, 0.50);
  }
  for (size_t i = 0; i < ranks.front()->results().size(); ++i) report.results.push_back(merged(ranks, i));
  sort_results(report.results, setup->options.tokens);
  return report;
}

}  // namespace moectl
