// serve-decode and serve-prefill, one code: binds, loads, serves, and goes down in order. The main thread waits for
// signals and watches the engine; loading runs on another thread so that Ctrl-C works at any time.
#include <chrono>
#include <cstdlib>
#include <future>
#include <optional>
#include <string>

#include "cmd/command.h"
#include "cmd/progress.h"
#include "cmd/shutdown.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/secret_file.h"
#include "core/serving/worker_service.h"
#include "kernels/gpu.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

ServiceOptions service_options(const ServeOptions& given, Role role) {
  ServiceOptions options = given.service;
  options.role = role;
  if (!given.cluster_secret_file.empty()) options.cluster_secret = read_secret_file(given.cluster_secret_file);
  return options;
}

const std::string& source_of(const EngineConfig& config) {
  return config.shape.empty() ? config.model_dir : config.shape;
}

// ", EP 4 DP 4 TP 1, all-to-all naive"; empty: one rank.
std::string ranks_text(const ModelInfo& info) {
  if (!info.all2all_backend) return "";
  const Parallelism& p = info.parallelism;
  return fmt::format(", EP {} DP {} TP {}, all-to-all {}", p.ep_size, p.dp_size, p.tp_size,
                     all2all_backend_name(*info.all2all_backend));
}

// Loads the model; ends the process when a signal comes meanwhile. Throws what loading throws.
void load(WorkerService& service, EngineConfig config, Shutdown& shutdown) {
  ProgressBar progress("Loading " + source_of(config));
  config.progress = progress.callback();
  auto loading = std::async(std::launch::async, [&service, &config] { service.load(std::move(config)); });
  while (loading.wait_for(milliseconds(0)) != std::future_status::ready)
    if (const auto signal = shutdown.wait(milliseconds(5))) {
      // Reading a checkpoint cannot be interrupted, and nothing of ours needs to be put in order.
      log::info("stopped while loading");
      log::flush();
      std::_Exit(*signal == SIGINT ? 130 : 0);
    }
  loading.get();
  progress.finish();
}

// After the engine's failure: the open requests get their error answers, and the process ends within 30 s of what made
// the engine fail, its watchdog's 20 s among them. No destructor runs: ranks may hang in the driver of their device,
// where freeing memory would hang too.
[[noreturn]] void end_failed(WorkerService& service, Shutdown& shutdown, const std::string& failure) {
  constexpr std::chrono::seconds kSlowReaders{5}, kEnd{8};
  shutdown.begin(kEnd, "the engine failed");
  shutdown.set_step("answering the open requests of an engine that failed");
  service.close(kSlowReaders);
  log::print(fmt::format("moectl: error: the engine failed, the instance ends: {}\n", failure));
  log::flush();
  std::_Exit(exit_code(Code::kInternal));
}

// Until a signal comes; ends the process when the engine fails.
int wait_for_signal(WorkerService& service, Shutdown& shutdown) {
  for (;;) {
    if (const auto signal = shutdown.wait(milliseconds(250))) return *signal;
    if (const auto failure = service.failure()) end_failed(service, shutdown, *failure);
  }
}

// For shut_down(): the engine may also fail after the signal.
struct EndingService {
  WorkerService& service;
  Shutdown& shutdown;
  void drain() { service.drain(); }
  int num_in_flight() const { return service.num_in_flight(); }
  void stop(milliseconds grace) {
    if (const auto failure = service.failure()) end_failed(service, shutdown, *failure);
    service.stop(grace);
  }
};

int serve(const ServeOptions& options, Role role) {
  const bool several_ranks = options.engine.parallelism.world_size() > 1;
  // Before there are other threads: it sets an environment variable.
  if (several_ranks && options.engine.device == "cuda") load_kernels_eagerly();
  Shutdown shutdown(options.shutdown_timeout);
  start_serving_process();
  WorkerService service(service_options(options, role));
  log::info("listening on {}, loading {}", service.url(), source_of(options.engine));
  if (options.engine.device == "auto") {
    if (const std::string why = why_no_gpu(); !why.empty())
      log::info("--device auto takes the CPU: {}", why);
    else if (several_ranks)
      log::info("--device auto runs several ranks on the CPU; --device cuda takes one GPU per rank");
  }
  const auto start = Clock::now();
  load(service, options.engine, shutdown);
  const ModelInfo& info = service.model_info();
  log::info("ready after {} ms: {} ({}, {:.1f} M parameters) on {}, context {}, KV pool {} tokens{}",
            std::chrono::duration_cast<milliseconds>(Clock::now() - start).count(), options.service.served_model_name,
            info.architecture, double(info.num_params) / 1e6, info.exactness, info.max_model_len, info.kv_pool_tokens,
            ranks_text(info));
  if (const auto kv = service.kv_endpoint()) log::info("decode workers ask for prompts on {}", *kv);
  print_ready_line(service.url(), service.ops_url(), service.kv_endpoint());
  const int signal = wait_for_signal(service, shutdown);
  EndingService ending{service, shutdown};
  shut_down(ending, shutdown);
  log::info("stopped");
  return exit_status(signal);
}

}  // namespace

int serve_decode(const ServeOptions& options) {
  return serve(options, Role::kDecode);
}

int serve_prefill(const ServeOptions& options) {
  if (options.cluster_secret_file.empty())
    throw Error(Code::kBadConfig,
                "serve-prefill needs --cluster-secret-file FILE: it gives keys and values only to decode workers that "
                "know the cluster's secret. Make one with `openssl rand -hex 32 > FILE`");
  return serve(options, Role::kPrefill);
}

}  // namespace moectl
