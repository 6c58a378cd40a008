// `moectl bench engine`: synthetic prompts through the engine, without a server, for a checkpoint or for synthetic
// weights of a published shape. Every level of concurrency runs the same requests first, so their hashes must agree
// where results are batch-invariant: the benchmark is an exactness test too. The machine's own limit is measured in the
// same run: a decode step reads every active weight once, so read bandwidth bounds it.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>

#include "cmd/bench/expert_load.h"
#include "cmd/command.h"
#include "cmd/progress.h"
#include "core/base/error.h"
#include "kernels/bench_kernels.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// FNV-1a, 64 bits, over output ids: short, and the same in any language.
struct Hash {
  uint64_t value = 0xcbf29ce484222325ull;
  void add(int32_t id) {
    for (int shift = 0; shift < 32; shift += 8) value = (value ^ ((uint32_t(id) >> shift) & 0xff)) * 0x100000001b3ull;
  }
};

struct BenchAnswer {
  std::vector<int32_t> ids;
  std::vector<Clock::time_point> times;  // of each id
  Clock::time_point submitted, last;
  std::string error;
  bool done = false;
};

struct Level {
  int concurrency = 0;
  int num_requests = 0;
  double seconds = 0, output_tokens_per_second = 0;
  double decode_tokens_per_second = 0;  // while all of the first `concurrency` requests decode; 0: never so
  double ttft_p50_seconds = 0, itl_p50_seconds = 0;
  double idle_share = 0;  // of the device, between steps
  uint64_t hash = 0;
};

std::vector<std::vector<int32_t>> make_prompts(int count, int length, int32_t vocab, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<std::vector<int32_t>> prompts(static_cast<size_t>(count));
  for (auto& prompt : prompts)
    for (int i = 0; i < length; ++i) prompt.push_back(int32_t(rng() % uint64_t(vocab)));
  return prompts;
}

// Keeps `concurrency` requests in flight until all prompts are answered.
std::vector<BenchAnswer> answer_all(Engine& engine, const std::vector<std::vector<int32_t>>& prompts, int concurrency,
                                    int output_len, ProgressBar& bar) {
  std::vector<BenchAnswer> answers(prompts.size());
  std::mutex mutex;
  std::condition_variable changed;
  size_t in_flight = 0, done = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return in_flight < size_t(concurrency); });
      ++in_flight;
    }
    GenerateRequest request;
    request.id = fmt::format("bench-{}", i);
    request.prompt_ids = prompts[i];
    request.sampling.temperature = 0;
    request.sampling.max_tokens = output_len;
    request.sampling.ignore_eos = true;
    answers[i].submitted = Clock::now();
    engine.submit(std::move(request), [&, i](GenerateOutput&& out) {
      std::lock_guard lock(mutex);
      BenchAnswer& a = answers[i];
      for (const auto& token : out.tokens) {
        a.times.push_back(Clock::now());
        a.ids.push_back(token.id);
      }
      if (out.finish == FinishReason::kNone) return;
      a.last = Clock::now();
      a.error = out.error;
      a.done = true;
      --in_flight;
      bar.update(int64_t(++done), int64_t(prompts.size()));
      changed.notify_all();
    });
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return done == prompts.size(); });
  for (const BenchAnswer& a : answers)
    if (!a.error.empty()) throw Error(Code::kInternal, "a benchmark request failed: " + a.error);
  return answers;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + ptrdiff_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Prompt tokens per second with one request in flight: prompts that ask for a single token.
double prefill_rate(Engine& engine, const std::vector<std::vector<int32_t>>& prompts) {
  ProgressBar bar("prefill", ProgressBar::Unit::kCount);
  std::vector<double> rates;
  for (const BenchAnswer& a : answer_all(engine, prompts, 1, 1, bar))
    rates.push_back(double(prompts[0].size()) / std::chrono::duration<double>(a.times.front() - a.submitted).count());
  bar.finish();
  return median(rates);
}

// Tokens per second from the moment when the last of the first `concurrency` requests has its first token until the
// first request ends: nothing but decode steps of so many rows.
double decode_rate(const std::vector<BenchAnswer>& answers, size_t concurrency) {
  if (answers.size() < concurrency) return 0;
  auto begin = answers[0].times.front(), end = answers[0].last;
  for (size_t i = 0; i < concurrency; ++i) {
    begin = std::max(begin, answers[i].times.front());
    end = std::min(end, answers[i].last);
  }
  size_t num_tokens = 0;
  for (size_t i = 0; i < concurrency; ++i)
    num_tokens += size_t(std::count_if(answers[i].times.begin(), answers[i].times.end(),
                                       [&](Clock::time_point t) { return t > begin && t <= end; }));
  return end > begin ? double(num_tokens) / std::chrono::duration<double>(end - begin).count() : 0;
}

// The hash is of the first `num_hashed` answers.
Level run_level(Engine& engine, const std::vector<std::vector<int32_t>>& prompts, int concurrency, int output_len,
                int num_hashed) {
  ProgressBar bar(fmt::format("concurrency {}", concurrency), ProgressBar::Unit::kCount);
  const EngineStats before = engine.stats();
  const auto start = Clock::now();
  const std::vector<BenchAnswer> answers = answer_all(engine, prompts, concurrency, output_len, bar);
  Level level;
  level.concurrency = concurrency;
  level.num_requests = int(prompts.size());
  level.seconds = seconds_since(start);
  level.decode_tokens_per_second = decode_rate(answers, size_t(concurrency));
  const EngineStats after = engine.stats();
  const double busy = after.busy_seconds_total - before.busy_seconds_total;
  const double idle = after.idle_seconds_total - before.idle_seconds_total;
  level.idle_share = busy + idle > 0 ? idle / (busy + idle) : 0;
  bar.finish();
  Hash hash;
  std::vector<double> ttft, itl;
  size_t num_tokens = 0;
  for (const BenchAnswer& a : answers) {
    if (num_hashed-- > 0)
      for (int32_t id : a.ids) hash.add(id);
    num_tokens += a.ids.size();
    ttft.push_back(std::chrono::duration<double>(a.times.front() - a.submitted).count());
    if (a.ids.size() > 1)
      itl.push_back(std::chrono::duration<double>(a.last - a.times.front()).count() / double(a.ids.size() - 1));
  }
  level.hash = hash.value;
  level.ttft_p50_seconds = median(ttft);
  level.itl_p50_seconds = median(itl);
  level.output_tokens_per_second = double(num_tokens) / level.seconds;
  return level;
}

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// Requests of each level: as many as were asked for; else twice the largest concurrency, or one wave for synthetic
// weights, where levels may differ by orders of magnitude.
std::vector<int> requests_of_levels(const BenchLoad& load, bool made_up) {
  const int largest = *std::max_element(load.concurrency.begin(), load.concurrency.end());
  std::vector<int> counts;
  for (const int concurrency : load.concurrency)
    counts.push_back(load.num_requests.value_or(made_up ? concurrency : 2 * largest));
  return counts;
}

struct EngineReport {
  std::string model;
  ModelInfo info;
  int threads = 0;
  double load_seconds = 0, prefill_tokens_per_second = 0, read_bytes_per_second = 0, bytes_per_token = 0;
  int64_t idle_bytes = 0;
  bool on_gpu = false, exact = false, equal = false;  // exact: results are batch-invariant
  std::vector<Level> levels;
  ExpertLoad expert_load;  // of the whole run
};

void print_json(const EngineReport& s, const BenchLoad& load) {
  const std::optional<All2AllBackend> backend = s.info.all2all_backend;
  nlohmann::json j = {{"model", s.model},
                      {"architecture", s.info.architecture},
                      {"exactness", s.info.exactness},
                      {"ep_size", s.info.parallelism.ep_size},
                      {"all2all_backend", backend ? nlohmann::json(all2all_backend_name(*backend)) : nullptr},
                      {"threads", s.threads},
                      {"input_len", load.input_len},
                      {"output_len", load.output_len},
                      {"load_seconds", s.load_seconds},
                      {"resident_bytes_idle", s.idle_bytes},
                      {"weight_bytes", s.info.weight_bytes},
                      {"prefill_tokens_per_second", s.prefill_tokens_per_second},
                      {"weight_bytes_per_token", int64_t(s.bytes_per_token)},
                      {"memory_read_bytes_per_second", int64_t(s.read_bytes_per_second)},
                      {"expert_load", expert_load_json(s.expert_load)},
                      {"hashes_equal", s.equal}};
  for (const Level& l : s.levels)
    j["levels"].push_back({{"concurrency", l.concurrency},
                           {"num_requests", l.num_requests},
                           {"output_tokens_per_second", l.output_tokens_per_second},
                           {"decode_tokens_per_second", l.decode_tokens_per_second},
                           {"decode_tokens_per_second_per_stream", l.itl_p50_seconds > 0 ? 1 / l.itl_p50_seconds : 0.0},
                           {"ttft_p50_seconds", l.ttft_p50_seconds},
                           {"itl_p50_seconds", l.itl_p50_seconds},
                           {"seconds", l.seconds},
                           {"idle_share", l.idle_share},
                           {"output_hash", fmt::format("{:016x}", l.hash)}});
  fmt::print("{}\n", j.dump(2));
}

void print_table(const EngineReport& s, const BenchLoad& load) {
  const std::optional<All2AllBackend> backend = s.info.all2all_backend;
  fmt::print("{}  {}  {}  EP {}{}, {} threads\n", s.model, s.info.architecture, s.info.exactness,
             s.info.parallelism.ep_size, backend ? fmt::format(" ({})", all2all_backend_name(*backend)) : "",
             s.threads);
  fmt::print("{} tokens in, {} out, greedy, no prefix cache\n", load.input_len, load.output_len);
  fmt::print("loaded in {:.2f} s; resident when idle {:.1f} MB; weights {:.1f} MB\n\n", s.load_seconds,
             double(s.idle_bytes) / 1e6, double(s.info.weight_bytes) / 1e6);
  fmt::print("prefill, one request    {:>9.0f} tokens/s\n\n", s.prefill_tokens_per_second);
  fmt::print("{:>11} {:>8} {:>14} {:>14} {:>16} {:>10} {:>10} {:>6}  {}\n", "concurrency", "requests", "output tok/s",
             "decode tok/s", "tok/s a stream", "TTFT p50", "ITL p50", "idle", "output hash");
  for (const Level& l : s.levels)
    fmt::print("{:>11} {:>8} {:>14.0f} {:>14} {:>16.0f} {:>7.1f} ms {:>7.2f} ms {:>4.1f} %  {:016x}\n", l.concurrency,
               l.num_requests, l.output_tokens_per_second,
               l.decode_tokens_per_second > 0 ? fmt::format("{:.0f}", l.decode_tokens_per_second) : "-",
               l.itl_p50_seconds > 0 ? 1 / l.itl_p50_seconds : 0.0, l.ttft_p50_seconds * 1e3, l.itl_p50_seconds * 1e3,
               100 * l.idle_share, l.hash);
  fmt::print("\n{}", expert_load_text(s.expert_load));
  const Level& first = s.levels[0];
  const double streamed = s.bytes_per_token * (first.itl_p50_seconds > 0 ? 1 / first.itl_p50_seconds : 0.0);
  fmt::print("weights read in decode  {:>9.1f} GB/s at concurrency {} ({:.1f} MB a token, one stream's share)\n",
             streamed / 1e9, first.concurrency, s.bytes_per_token / 1e6);
  fmt::print(
      "memory read, this run   {:>9.1f} GB/s {}\n", s.read_bytes_per_second / 1e9,
      s.on_gpu ? "by the GPU" : fmt::format("with {} threads (a model that fits the caches may exceed it)", s.threads));
  fmt::print("{}\n", s.equal   ? "all levels gave the same output"
                     : s.exact ? "THE LEVELS DIFFER: results depend on the batch; this is a defect"
                               : "the levels differ, as they may on a GPU without --deterministic");
}

}  // namespace

int bench_engine(const BenchEngineOptions& options) {
  EngineConfig config = options.engine;
  const BenchLoad& load = options.load;
  const std::vector<int> num_requests = requests_of_levels(load, !config.shape.empty());
  config.enable_prefix_caching = false;  // every prompt is computed
  config.max_num_seqs =
      std::max(config.max_num_seqs, *std::max_element(load.concurrency.begin(), load.concurrency.end()));

  EngineReport s{.model = config.shape.empty() ? config.model_dir : config.shape};
  ProgressBar bar("loading");
  config.progress = bar.callback();
  const auto load_start = Clock::now();
  std::unique_ptr<Engine> engine = Engine::create(config);
  s.load_seconds = seconds_since(load_start);
  bar.finish();
  s.idle_bytes = resident_bytes();
  s.info = engine->info();  // outlives the engine
  s.on_gpu = s.info.device == "cuda";
  s.exact = !s.on_gpu || config.deterministic;
  const auto prompts = make_prompts(*std::max_element(num_requests.begin(), num_requests.end()), load.input_len,
                                    s.info.vocab_size, load.seed);
  const auto first_prompts = [&](int count) { return std::vector(prompts.begin(), prompts.begin() + count); };

  // One request first, uncounted: code and weights are paged in.
  {
    ProgressBar warm_up("warm-up", ProgressBar::Unit::kCount);
    answer_all(*engine, first_prompts(1), 1, std::min(load.output_len, 16), warm_up);
  }
  s.prefill_tokens_per_second = prefill_rate(*engine, first_prompts(std::min<int>(int(prompts.size()), 8)));
  const int num_hashed = *std::min_element(num_requests.begin(), num_requests.end());
  for (size_t i = 0; i < num_requests.size(); ++i)
    s.levels.push_back(
        run_level(*engine, first_prompts(num_requests[i]), load.concurrency[i], load.output_len, num_hashed));
  s.expert_load = wait_for_expert_load(*engine);
  engine.reset();

  s.threads = config.num_threads;
  s.read_bytes_per_second = read_bandwidth(s.on_gpu ? "cuda" : "cpu", s.threads);
  // What one token of one stream reads: the active parameters at the checkpoint's mean width.
  s.bytes_per_token =
      double(s.info.num_active_params) * double(s.info.weight_bytes) / double(std::max<int64_t>(s.info.num_params, 1));
  s.equal = std::all_of(s.levels.begin(), s.levels.end(), [&](const Level& l) { return l.hash == s.levels[0].hash; });
  if (options.common.json)
    print_json(s, load);
  else
    print_table(s, load);
  return s.equal || !s.exact ? 0 : 1;
}

}  // namespace moectl
