// The parts of `moectl bench serve` that need no server: which requests are sent and when, what is kept of each, and
// the numbers and texts made of them. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cmd/command.h"

namespace moectl {

// ---------------------------------------------------------------------------------------------- requests
struct BenchRequest {
  std::string path;  // /v1/completions or /v1/chat/completions
  std::string body;
};

// Bodies by index; the same for equal options, and different for each measurement `phase` (0 is the warm-up), so that
// no measurement finds an earlier one's prompts in a prefix cache. Prompts of a file are the same in every phase.
class BenchRequests {
 public:
  // Throws Error{kNotFound}, Error{kBadData} naming file and line.
  BenchRequests(const BenchServeOptions& options, std::string model);
  BenchRequest make(int phase, int64_t index) const;

 private:
  std::string body_tail() const;

  const BenchLoad load_;
  const ServeLoad serve_load_;
  const std::string model_;
  std::vector<BenchRequest> of_file_;
};

// Seconds from one arrival to the next: exponential, so that arrivals are a Poisson process of `rate` per second.
class PoissonArrivals {
 public:
  PoissonArrivals(double rate, uint64_t seed) : rate_(rate), rng_(seed) {}
  double next_gap();

 private:
  const double rate_;
  std::mt19937_64 rng_;
};

// ---------------------------------------------------------------------------------------------- measurements
// Seconds of any number of events. Keeps at most kMax, a fair choice among all, so that memory is bounded.
class Samples {
 public:
  static constexpr size_t kMax = 1 << 21;
  void add(double value);
  int64_t count() const { return count_; }
  const std::vector<double>& values() const { return values_; }

 private:
  std::vector<double> values_;
  int64_t count_ = 0;
  std::mt19937_64 rng_{1};
};

struct Distribution {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, min = 0, max = 0;
};
// Percentiles are interpolated linearly between the two nearest values, as numpy does by default.
Distribution describe(std::vector<double> values);
double percentile(const std::vector<double>& sorted, double part);

// What one request gave.
struct BenchSample {
  double start_seconds = 0;  // since the measurement began
  double ttft_seconds = 0, last_token_seconds = 0, e2e_seconds = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  std::string error_kind;    // "HTTP 429", "cannot connect"; empty: it went well
  std::string error_detail;  // the first words of the message
};

struct BenchLevel {
  int concurrency = 0;      // 0: by request rate
  double request_rate = 0;  // 0: by concurrency
  double seconds = 0, cpu_seconds = 0;
  int64_t num_ok = 0, num_failed = 0, max_in_flight = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;  // of the requests that went well
  Samples ttft, tpot, itl, e2e;                                     // seconds
  struct Failure {
    int64_t count = 0;
    std::string example;
  };
  std::map<std::string, Failure> failures;
  std::vector<int64_t> tokens_by_time;  // tokens that arrived in each kTimeBin since the start
  static constexpr double kTimeBin = 0.05;

  void add(const BenchSample& sample);
  void add_tokens_at(double since_start_seconds, int num_tokens);
  std::string label() const;  // "concurrency 4", "2.5 requests/s"
  double per_second(int64_t amount) const { return seconds > 0 ? double(amount) / seconds : 0; }
};

struct BenchRun {
  std::string url, model, load;  // what was asked of whom, in words
  std::string started;           // "2026-01-31 12:00:00 UTC"
  uint64_t seed = 0;
  bool interrupted = false;
  int input_len = 0, output_len = 0, shared_prefix_len = 0;
  std::vector<BenchLevel> levels;
};

std::string bench_text(const BenchRun& run);  // tables of at most 100 columns
std::string bench_json(const BenchRun& run);
int bench_exit_code(const BenchRun& run);

}  // namespace moectl
