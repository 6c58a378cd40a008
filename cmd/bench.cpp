// `moectl bench engine`: made-up prompts through the engine, without a server. Every level of concurrency runs the same
// requests, so their hashes must agree: the benchmark is an exactness test too. Beside the speed stands the machine's
// own limit, measured in the same run: a decode step reads every active weight once, so read bandwidth bounds it.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "cmd/command.h"
#include "cmd/progress.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/model/inspect.h"

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

struct Answer {
  std::vector<int32_t> ids;
  Clock::time_point submitted, first, last;
  std::string error;
  bool done = false;
};

struct Level {
  int concurrency = 0;
  double seconds = 0, output_tokens_per_second = 0;
  double ttft_p50_seconds = 0, itl_p50_seconds = 0;
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
std::vector<Answer> answer_all(Engine& engine, const std::vector<std::vector<int32_t>>& prompts, int concurrency,
                               int output_len, ProgressBar& bar) {
  std::vector<Answer> answers(prompts.size());
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
      Answer& a = answers[i];
      for (const auto& token : out.tokens) {
        if (a.ids.empty()) a.first = Clock::now();
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
  for (const Answer& a : answers)
    if (!a.error.empty()) throw Error(Code::kInternal, "a benchmark request failed: " + a.error);
  return answers;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + ptrdiff_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Prompt tokens a second with one request in flight: prompts that ask for a single token.
double prefill_rate(Engine& engine, const std::vector<std::vector<int32_t>>& prompts) {
  ProgressBar bar("prefill", ProgressBar::Unit::kCount);
  std::vector<double> rates;
  for (const Answer& a : answer_all(engine, prompts, 1, 1, bar))
    rates.push_back(double(prompts[0].size()) / std::chrono::duration<double>(a.first - a.submitted).count());
  bar.finish();
  return median(rates);
}

Level run_level(Engine& engine, const std::vector<std::vector<int32_t>>& prompts, int concurrency, int output_len) {
  ProgressBar bar(fmt::format("concurrency {}", concurrency), ProgressBar::Unit::kCount);
  const auto start = Clock::now();
  const std::vector<Answer> answers = answer_all(engine, prompts, concurrency, output_len, bar);
  Level level;
  level.concurrency = concurrency;
  level.seconds = seconds_since(start);
  bar.finish();
  Hash hash;
  std::vector<double> ttft, itl;
  size_t num_tokens = 0;
  for (const Answer& a : answers) {
    for (int32_t id : a.ids) hash.add(id);
    num_tokens += a.ids.size();
    ttft.push_back(std::chrono::duration<double>(a.first - a.submitted).count());
    if (a.ids.size() > 1)
      itl.push_back(std::chrono::duration<double>(a.last - a.first).count() / double(a.ids.size() - 1));
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

}  // namespace

int bench_engine(const BenchEngineOptions& options) {
  EngineConfig config = options.engine;
  const BenchLoad& load = options.load;
  const int largest = *std::max_element(load.concurrency.begin(), load.concurrency.end());
  const int num_requests = load.num_requests > 0 ? load.num_requests : 2 * largest;
  config.enable_prefix_caching = false;  // every prompt is computed
  config.max_num_seqs = std::max(config.max_num_seqs, largest);
  const InspectReport report = inspect_checkpoint(config.model_dir);

  ProgressBar bar("loading");
  config.progress = bar.callback();
  const auto load_start = Clock::now();
  std::unique_ptr<Engine> engine = Engine::create(config);
  const double load_seconds = seconds_since(load_start);
  bar.finish();
  const int64_t idle_bytes = resident_bytes();
  const ModelInfo info = engine->info();  // outlives the engine
  const auto prompts = make_prompts(num_requests, load.input_len, info.vocab_size, load.seed);

  // One request first, uncounted: code and weights are paged in.
  {
    ProgressBar warm_up("warm-up", ProgressBar::Unit::kCount);
    answer_all(*engine, {prompts[0]}, 1, std::min(load.output_len, 16), warm_up);
  }
  const double prefill = prefill_rate(*engine, {prompts.begin(), prompts.begin() + std::min(num_requests, 8)});
  std::vector<Level> levels;
  for (int concurrency : load.concurrency) levels.push_back(run_level(*engine, prompts, concurrency, load.output_len));
  engine.reset();

  const int threads =
      config.num_threads > 0 ? config.num_threads : int(std::max(1u, std::thread::hardware_concurrency()));
  const double bandwidth = memory_read_bandwidth(threads);
  // What one token of one stream reads: the active parameters at the checkpoint's mean width.
  const double bytes_per_token =
      double(report.parameters.active) * double(info.weight_bytes) / double(std::max<int64_t>(info.num_params, 1));
  const bool equal =
      std::all_of(levels.begin(), levels.end(), [&](const Level& l) { return l.hash == levels[0].hash; });

  if (options.common.json) {
    nlohmann::json j = {{"model", config.model_dir},
                        {"architecture", info.architecture},
                        {"numerics_id", info.numerics_id},
                        {"ep_size", config.ep_size},
                        {"threads", threads},
                        {"input_len", load.input_len},
                        {"output_len", load.output_len},
                        {"num_requests", num_requests},
                        {"load_seconds", load_seconds},
                        {"resident_bytes_idle", idle_bytes},
                        {"weight_bytes", info.weight_bytes},
                        {"prefill_tokens_per_second", prefill},
                        {"weight_bytes_per_token", int64_t(bytes_per_token)},
                        {"memory_read_bytes_per_second", int64_t(bandwidth)},
                        {"hashes_equal", equal}};
    for (const Level& l : levels)
      j["levels"].push_back(
          {{"concurrency", l.concurrency},
           {"output_tokens_per_second", l.output_tokens_per_second},
           {"decode_tokens_per_second_per_stream", l.itl_p50_seconds > 0 ? 1 / l.itl_p50_seconds : 0.0},
           {"ttft_p50_seconds", l.ttft_p50_seconds},
           {"itl_p50_seconds", l.itl_p50_seconds},
           {"seconds", l.seconds},
           {"output_hash", fmt::format("{:016x}", l.hash)}});
    fmt::print("{}\n", j.dump(2));
  } else {
    fmt::print("{}  {}  {}  EP {}, {} threads\n", config.model_dir, info.architecture, info.numerics_id, config.ep_size,
               threads);
    fmt::print("{} requests a level, {} tokens in, {} out, greedy, no prefix cache\n", num_requests, load.input_len,
               load.output_len);
    fmt::print("loaded in {:.2f} s; resident when idle {:.1f} MB; weights {:.1f} MB\n\n", load_seconds,
               double(idle_bytes) / 1e6, double(info.weight_bytes) / 1e6);
    fmt::print("prefill, one request    {:>9.0f} tokens/s\n\n", prefill);
    fmt::print("{:>11} {:>14} {:>16} {:>10} {:>10}  {}\n", "concurrency", "output tok/s", "tok/s a stream", "TTFT p50",
               "ITL p50", "output hash");
    for (const Level& l : levels)
      fmt::print("{:>11} {:>14.0f} {:>16.0f} {:>7.1f} ms {:>7.2f} ms  {:016x}\n", l.concurrency,
                 l.output_tokens_per_second, l.itl_p50_seconds > 0 ? 1 / l.itl_p50_seconds : 0.0,
                 l.ttft_p50_seconds * 1e3, l.itl_p50_seconds * 1e3, l.hash);
    const double streamed = bytes_per_token * (levels[0].itl_p50_seconds > 0 ? 1 / levels[0].itl_p50_seconds : 0.0);
    fmt::print("\nweights read in decode  {:>9.1f} GB/s at concurrency {} ({:.1f} MB a token, one stream's share)\n",
               streamed / 1e9, levels[0].concurrency, bytes_per_token / 1e6);
    fmt::print("memory read, this run   {:>9.1f} GB/s with {} threads (a model that fits the caches may exceed it)\n",
               bandwidth / 1e9, threads);
    fmt::print("{}\n", equal ? "all levels gave the same output"
                             : "THE LEVELS DIFFER: results depend on the batch; this is a defect");
  }
  return equal ? 0 : 1;
}

}  // namespace moectl
