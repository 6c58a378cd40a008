// What requests gave -> numbers, tables and JSON.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cmd/bench/serve.h"
#include "core/base/error.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxKinds = 32;                                   // of errors that are counted separately
constexpr size_t kMaxBins = size_t(86400 / BenchLevel::kTimeBin);  // a day

struct Row {
  const char* name;
  const Samples* samples;
};

std::vector<Row> rows_of(const BenchLevel& level) {
  return {{"TTFT", &level.ttft}, {"TPOT", &level.tpot}, {"ITL", &level.itl}, {"E2E", &level.e2e}};
}

double rounded(double value) {
  return std::round(value * 1e6) / 1e6;
}

Json distribution_json(const Samples& samples) {
  if (samples.count() == 0) return nullptr;
  const Distribution d = describe(samples.values());
  return {{"count", samples.count()}, {"mean", rounded(d.mean)}, {"p50", rounded(d.p50)}, {"p90", rounded(d.p90)},
          {"p95", rounded(d.p95)},    {"p99", rounded(d.p99)},   {"min", rounded(d.min)}, {"max", rounded(d.max)}};
}

Json level_json(const BenchLevel& level) {
  Json json = {{"concurrency", level.concurrency > 0 ? Json(level.concurrency) : Json()},
               {"request_rate", level.request_rate > 0 ? Json(level.request_rate) : Json()},
               {"seconds", rounded(level.seconds)},
               {"client_cpu_seconds", rounded(level.cpu_seconds)},
               {"num_ok", level.num_ok},
               {"num_failed", level.num_failed},
               {"max_in_flight", level.max_in_flight},
               {"prompt_tokens", level.prompt_tokens},
               {"cached_tokens", level.cached_tokens},
               {"output_tokens", level.output_tokens},
               {"requests_per_second", rounded(level.per_second(level.num_ok))},
               {"prompt_tokens_per_second", rounded(level.per_second(level.prompt_tokens))},
               {"output_tokens_per_second", rounded(level.per_second(level.output_tokens))},
               {"ttft_seconds", distribution_json(level.ttft)},
               {"tpot_seconds", distribution_json(level.tpot)},
               {"itl_seconds", distribution_json(level.itl)},
               {"e2e_seconds", distribution_json(level.e2e)}};
  Json& errors = json["errors"] = Json::array();
  for (const auto& [kind, failure] : level.failures)
    errors.push_back({{"kind", kind}, {"count", failure.count}, {"example", failure.example}});
  return json;
}

std::string milliseconds_text(double seconds) {
  const double ms = seconds * 1e3;
  return ms < 99.95 ? fmt::format("{:.2f}", ms) : fmt::format("{:.0f}", ms);
}

}  // namespace

void Samples::add(double value) {
  ++count_;
  if (values_.size() < kMax) {
    values_.push_back(value);
    return;
  }
  const uint64_t place = rng_() % uint64_t(count_);
  if (place < kMax) values_[size_t(place)] = value;
}

double percentile(const std::vector<double>& sorted, double part) {
  if (sorted.empty()) return 0;
  const double place = part * double(sorted.size() - 1);
  const size_t below = std::min(size_t(place), sorted.size() - 1), above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - double(below));
}

Distribution describe(std::vector<double> values) {
  Distribution d;
  if (values.empty()) return d;
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (double value : values) sum += value;
  d.count = int64_t(values.size());
  d.mean = sum / double(values.size());
  d.p50 = percentile(values, 0.50);
  d.p90 = percentile(values, 0.90);
  d.p95 = percentile(values, 0.95);
  d.p99 = percentile(values, 0.99);
  d.min = values.front();
  d.max = values.back();
  return d;
}

void BenchLevel::add(const BenchSample& sample) {
  if (!sample.error_kind.empty()) {
    ++num_failed;
    const bool known = failures.contains(sample.error_kind);
    Failure& failure = failures[known || failures.size() < kMaxKinds ? sample.error_kind : "other"];
    if (++failure.count == 1) failure.example = sample.error_detail;
    return;
  }
  ++num_ok;
  prompt_tokens += sample.prompt_tokens;
  cached_tokens += sample.cached_tokens;
  output_tokens += sample.output_tokens;
  ttft.add(sample.ttft_seconds);
  e2e.add(sample.e2e_seconds);
  if (sample.output_tokens > 1)
    tpot.add((sample.last_token_seconds - sample.ttft_seconds) / double(sample.output_tokens - 1));
}

void BenchLevel::add_tokens_at(double since_start_seconds, int num_tokens) {
  const size_t bin = size_t(std::max(0.0, since_start_seconds) / kTimeBin);
  if (bin >= kMaxBins) return;
  if (bin >= tokens_by_time.size()) tokens_by_time.resize(bin + 1);
  tokens_by_time[bin] += num_tokens;
}

std::string BenchLevel::label() const {
  return concurrency > 0 ? fmt::format("concurrency {}", concurrency) : fmt::format("{:g} requests/s", request_rate);
}

std::string bench_text(const BenchRun& run) {
  std::string out = fmt::format("{}  {}\n{}, seed {}\n\n", run.url, run.model, run.load, run.seed);
  out += fmt::format("{:<20} {:>7} {:>7} {:>8} {:>10} {:>11} {:>11} {:>9} {:>9}\n", "", "ok", "failed", "seconds",
                     "requests/s", "tokens in/s", "out/s", "in flight", "own CPU s");
  for (const BenchLevel& level : run.levels)
    out += fmt::format("{:<20} {:>7} {:>7} {:>8.2f} {:>10.2f} {:>11.0f} {:>11.0f} {:>9} {:>9.2f}\n", level.label(),
                       level.num_ok, level.num_failed, level.seconds, level.per_second(level.num_ok),
                       level.per_second(level.prompt_tokens), level.per_second(level.output_tokens),
                       level.max_in_flight, level.cpu_seconds);
  out += fmt::format("\n{:<20} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "milliseconds", "", "mean", "p50",
                     "p90", "p95", "p99", "max", "count");
  for (const BenchLevel& level : run.levels) {
    std::string title = level.label();
    for (const auto& [name, samples] : rows_of(level)) {
      if (samples->count() == 0) continue;
      const Distribution d = describe(samples->values());
      out +=
          fmt::format("{:<20} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", title, name,
                      milliseconds_text(d.mean), milliseconds_text(d.p50), milliseconds_text(d.p90),
                      milliseconds_text(d.p95), milliseconds_text(d.p99), milliseconds_text(d.max), samples->count());
      title.clear();
    }
  }
  for (const BenchLevel& level : run.levels)
    for (const auto& [kind, failure] : level.failures)
      out += fmt::format("\n{}: {} x {}: {}", level.label(), failure.count, kind, failure.example);
  const bool failed = bench_exit_code(run) == 1;
  if (failed) out += "\n\nREQUESTS FAILED: latencies and throughput count the others only\n";
  if (run.interrupted) out += "\ninterrupted: what is shown was measured so far\n";
  return out;
}

std::string bench_json(const BenchRun& run) {
  Json json = {{"url", run.url},
               {"model", run.model},
               {"load", run.load},
               {"started", run.started},
               {"seed", run.seed},
               {"interrupted", run.interrupted},
               {"input_len", run.input_len > 0 ? Json(run.input_len) : Json()},
               {"output_len", run.output_len},
               {"shared_prefix_len", run.shared_prefix_len}};
  Json& levels = json["levels"] = Json::array();
  for (const BenchLevel& level : run.levels) levels.push_back(level_json(level));
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

int bench_exit_code(const BenchRun& run) {
  if (run.interrupted) return 130;
  const bool failed =
      std::any_of(run.levels.begin(), run.levels.end(), [](const BenchLevel& level) { return level.num_failed > 0; });
  const bool measured =
      std::any_of(run.levels.begin(), run.levels.end(), [](const BenchLevel& l) { return l.num_ok > 0; });
  return failed || !measured ? 1 : 0;
}

}  // namespace moectl
