// serve-decode: binds, loads, serves, and goes down in order. The main thread waits for signals and watches the engine;
// loading runs beside it so that Ctrl-C works at any time.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cmd/command.h"
#include "cmd/progress.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/worker/decode_service.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// SIGINT and SIGTERM, blocked in every thread started after it and taken one by one by the main thread. Ignores
// SIGPIPE.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
    signal(SIGPIPE, SIG_IGN);
  }
  ~Signals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  // The next signal, or nullopt when none came within `timeout`.
  std::optional<int> wait(milliseconds timeout) const {
    const timespec duration{timeout.count() / 1000, (timeout.count() % 1000) * 1'000'000};
    const int signal = sigtimedwait(&set_, nullptr, &duration);
    return signal > 0 ? std::optional(signal) : std::nullopt;
  }

 private:
  sigset_t set_, before_;
};

int exit_status(int signal) {
  return signal == SIGINT ? 130 : 0;
}

ServiceOptions service_options(const ApiOptions& api) {
  ServiceOptions options;
  options.served_model_name = api.served_model_name;
  options.version = MOECTL_VERSION;
  options.host = api.host;
  options.port = api.port;
  options.ops_port = api.ops_port;
  options.api_keys = api.api_keys;
  options.ssl_certfile = api.ssl_certfile;
  options.ssl_keyfile = api.ssl_keyfile;
  options.reasoning_parser = api.reasoning_parser;
  options.skip_tokenizer_init = api.skip_tokenizer_init;
  return options;
}

// The one line on stdout, for programs that started us: it says where, with --port 0 above all.
void print_ready_line(const DecodeService& service) {
  nlohmann::ordered_json line = {{"ready", true}, {"url", service.url()}, {"ops", nullptr}, {"kv", nullptr}};
  if (const auto ops = service.ops_url()) line["ops"] = *ops;
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

// Loads the model; ends the process when a signal comes meanwhile. Throws what loading throws.
void load(DecodeService& service, EngineConfig config, const Signals& signals) {
  ProgressBar progress("Loading " + config.model_dir);
  config.progress = progress.callback();
  auto loading = std::async(std::launch::async, [&service, &config] { service.load(std::move(config)); });
  while (loading.wait_for(milliseconds(0)) != std::future_status::ready)
    if (const auto signal = signals.wait(milliseconds(5))) {
      // Reading a checkpoint cannot be interrupted, and nothing of ours needs to be put in order.
      log::info("stopped while loading");
      std::_Exit(*signal == SIGINT ? 130 : 0);
    }
  loading.get();
  progress.finish();
}

// Until a signal comes (returned) or the engine fails (thrown).
int wait_for_end(DecodeService& service, const Signals& signals) {
  for (;;) {
    if (const auto signal = signals.wait(milliseconds(250))) return *signal;
    if (const auto failure = service.failure())
      throw Error(Code::kInternal, "the engine failed, the instance ends: " + *failure);
  }
}

void shut_down(DecodeService& service, const Signals& signals, std::chrono::seconds timeout) {
  service.drain();
  log::info("shutting down: waiting up to {} s for {} requests; a second signal ends them at once", timeout.count(),
            service.num_in_flight());
  const auto deadline = Clock::now() + timeout;
  while (service.num_in_flight() > 0 && Clock::now() < deadline)
    if (const auto signal = signals.wait(milliseconds(20))) {
      log::warn("second signal: {} requests are cut", service.num_in_flight());
      std::_Exit(*signal == SIGINT ? 130 : 1);
    }
  if (const int left = service.num_in_flight(); left > 0)
    log::warn("{} requests did not finish within {} s and are cut (--shutdown-timeout)", left, timeout.count());
  service.stop(milliseconds(500));
}

}  // namespace

int serve_decode(const ServeOptions& options) {
  const Signals signals;
  DecodeService service(service_options(options.api));
  log::info("listening on {}, loading {}", service.url(), options.engine.model_dir);
  const auto start = Clock::now();
  load(service, options.engine, signals);
  const ModelInfo& info = service.model_info();
  log::info("ready after {} ms: {} ({}, {:.1f} M parameters), context {}, KV pool {} tokens",
            std::chrono::duration_cast<milliseconds>(Clock::now() - start).count(), options.api.served_model_name,
            info.architecture, double(info.num_params) / 1e6, info.max_model_len, info.kv_pool_tokens);
  print_ready_line(service);
  const int signal = wait_for_end(service, signals);
  shut_down(service, signals, options.api.shutdown_timeout);
  log::info("stopped");
  return exit_status(signal);
}

}  // namespace moectl
