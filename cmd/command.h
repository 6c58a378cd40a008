// What a command gets: resolved values, already merged (flag > environment > file) and checked against each other by
// cmd/flags. Commands see neither flag names nor strings to parse, nor whether a value was given or is a default. Each
// command is one function, called on the main thread; it returns the exit code or throws Error, which main turns into a
// message and a code. Data goes to stdout, diagnostics to stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/comm/bench_comm.h"
#include "core/engine/engine.h"
#include "core/model/rank_memory.h"
#include "core/serving/service_options.h"
#include "router/options.h"

namespace moectl {

struct CommonOptions {
  bool json = false;                // --json: machine-readable result on stdout
  bool no_color = false;            // --no-color or NO_COLOR
  std::string log_format = "text";  // text | json; main has already called log::init
  std::string log_level = "info";   // debug | info | warn | error
};

struct ServeOptions {
  EngineConfig engine;              // engine.progress is empty: the command sets it (cmd/progress.h)
  ServiceOptions service;           // the command sets its role and secret
  std::string cluster_secret_file;  // empty: no part in a cluster
  std::chrono::seconds shutdown_timeout{30};
};

struct ServeRouterOptions {
  router::RouterOptions router;     // the command sets its secret and what reads the workers file
  std::string cluster_secret_file;  // empty: none
  std::chrono::seconds shutdown_timeout{30};
};

struct InspectOptions {
  CommonOptions common;
  std::string model_dir, shape;          // one of the two
  std::optional<RankMemoryQuery> ranks;  // asked for by a parallel size or --gpu-memory-gb
};

struct BenchLoad {
  int input_len = 512, output_len = 128;  // tokens per request
  std::vector<int> concurrency = {1, 4, 16};
  std::optional<int> num_requests;  // per measurement; nullopt: the command picks as many as the measurement needs
  uint64_t seed = 0;
};

struct BenchEngineOptions {
  CommonOptions common;
  EngineConfig engine;
  BenchLoad load;
};

struct BenchKernelsOptions {
  CommonOptions common;
  std::string device = "auto";  // auto | cpu | cuda
  std::string filter;           // regular expression; empty: all
  std::vector<std::string> shapes = {"deepseek-r1", "qwen3-30b-a3b"};
  int num_threads = 1;  // of the CPU backend
};

struct BenchCommOptions {
  CommonOptions common;
  CommBenchOptions bench;  // progress is empty: the command sets it
};

// A server that a command talks to.
struct EndpointOptions {
  std::string url = "http://127.0.0.1:8080";  // without a path; the router's default
  std::string model;                          // sent as `model`; empty: left out, or asked for
  std::vector<std::string> api_keys;          // the first is sent. Never log or print them
  std::chrono::seconds timeout{600};          // for the head of an answer, and between two reads of its body
  bool insecure = false;                      // accept any certificate
};

// Load on a server, besides BenchLoad.
struct ServeLoad {
  double request_rate = 0;                       // requests per second, Poisson arrivals; 0: by concurrency
  std::optional<std::chrono::seconds> duration;  // of a measurement: no request is started later
  int vocab_size = 4000;                         // random prompts are ids in [10, vocab_size)
  int shared_prefix_len = 0;                     // first tokens that all prompts of a measurement share
  std::string prompts_file;                      // JSONL; empty: random prompts
  int num_warmup = 2;
  std::string html_file;
  bool allow_remote = false;
};

struct BenchServeOptions {
  CommonOptions common;
  EndpointOptions endpoint;
  BenchLoad load;
  ServeLoad serve_load;
};

struct DebugRequestOptions {
  CommonOptions common;
  EndpointOptions endpoint;
  std::string path = "/v1/chat/completions";
  std::string method;                // empty: POST with a body, GET without
  std::vector<std::string> headers;  // "Name: value"
  std::string body;                  // JSON, "@FILE" or "-"
  std::string message;               // a chat of one message, in place of a body
  std::optional<int> max_tokens;     // with a message; nullopt: the server's default
  bool stream = true;                // with a message
};

// The four commands of `moectl deploy`. What is not given to `up` is taken from the deployment file, else from the
// defaults of DeployPlan: make_plan (cmd/deploy/plan.h) resolves it.
struct DeployOptions {
  std::optional<std::string> name;
  // up
  std::string file;  // empty: none
  std::optional<std::string> template_name, model, host;
  std::optional<int> prefill, decode, port;
  bool yes = false, foreground = false, dry_run = false;
  std::chrono::seconds ready_timeout{300};
  std::optional<std::chrono::seconds> unhealthy_timeout;
  // logs
  std::string instance, since, grep;  // empty: no such filter
  bool follow = false, previous = false;
  std::optional<int> tail;  // nullopt: everything
  // down
  std::chrono::seconds stop_timeout{30};
};

struct DocgenOptions {
  std::string root = ".";  // source tree that holds man/ and completions/
  bool check = false;      // compare, write nothing, fail with the names of files that differ
};

int serve_decode(const ServeOptions& options);                                 // cmd/serve.cpp
int serve_prefill(const ServeOptions& options);                                // cmd/serve.cpp
int serve_router(const ServeRouterOptions& options);                           // cmd/serve_router.cpp
int inspect(const InspectOptions& options);                                    // cmd/inspect.cpp
int bench_engine(const BenchEngineOptions& options);                           // cmd/bench/bench.cpp
int bench_kernels(const BenchKernelsOptions& options);                         // cmd/bench/kernels.cpp
int bench_comm(const BenchCommOptions& options);                               // cmd/bench/comm.cpp
int bench_serve(const BenchServeOptions& options);                             // cmd/bench/serve.cpp
int debug_request(const DebugRequestOptions& options);                         // cmd/debug_request.cpp
int deploy_up(const CommonOptions& common, const DeployOptions& options);      // cmd/deploy/deploy.cpp
int deploy_down(const DeployOptions& options);                                 // cmd/deploy/deploy.cpp
int deploy_status(const CommonOptions& common, const DeployOptions& options);  // cmd/deploy/status.cpp
int deploy_logs(const DeployOptions& options);                                 // cmd/deploy/logs.cpp
int docgen(const DocgenOptions& options);                                      // cmd/flags/docgen.cpp

}  // namespace moectl
