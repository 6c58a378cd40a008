// What a command gets: its options as typed values, already merged (flag > environment > file), checked and resolved by
// cmd/flags. Commands never see flag names or strings to parse. Each command is one function, called on the main
// thread; it returns the exit code or throws Error, which main turns into a message and a code. Data goes to stdout,
// diagnostics to stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "core/engine/engine.h"

namespace moectl {

struct CommonOptions {
  bool json = false;                // --json: machine-readable result on stdout
  bool no_color = false;            // --no-color or NO_COLOR
  std::string log_format = "text";  // text | json; main has already called log::init
  std::string log_level = "info";   // debug | info | warn | error
  std::string config_file;          // --config; already merged
};

// How the model is spread over ranks, as given; 0: not given. resolve() checks them against each other and writes
// EngineConfig::ep_size, which is what commands use.
struct ParallelOptions {
  int tp_size = 0, dp_size = 0, ep_size = 0;
};

// The HTTP side of a server.
struct ApiOptions {
  std::string served_model_name;  // resolved: the checkpoint folder's name when not given
  std::string host = "127.0.0.1";
  int port = -1;  // 0: the system picks one; the ready line tells which. Resolved by command
  std::string ops_host = "127.0.0.1";
  int ops_port = -1;                  // operations and admin; -1: off, 0: the system picks one
  std::vector<std::string> api_keys;  // any of them is accepted; empty: no authentication. Never log or print them
  bool metrics_without_key = false;
  bool debug_header = true;               // resolved: on loopback when not given
  std::string ssl_certfile, ssl_keyfile;  // both or none
  std::chrono::seconds shutdown_timeout{30};
  std::chrono::seconds stall_timeout{30};
  std::string reasoning_parser = "auto";  // auto (by checkpoint) | none | a name of core/api/output_formats.h
  std::string tool_call_parser = "auto";
  bool skip_tokenizer_init = false;  // prompts and answers as token ids only
};

// What serve-router decides by; router/context.h says what the values mean.
struct RoutingOptions {
  std::vector<std::string> prefill_urls, decode_urls;
  std::string workers_file;                           // in place of the two
  std::string policy, prefill_policy, decode_policy;  // empty: the default of the role
  double prefix_cache_load_tolerance = 0.3;
  int max_queue_size = 512;
  std::chrono::seconds queue_timeout{60};
  int max_requests_per_worker = 256;
  int max_retries = 3;
  int cb_failure_threshold = 10, cb_success_threshold = 3;
  std::chrono::seconds cb_timeout{60};
};

struct BenchLoad {
  int input_len = 512, output_len = 128;  // tokens a request
  std::vector<int> concurrency = {1, 4, 16};
  int num_requests = 0;  // a concurrency level; 0: twice the largest level
  uint64_t seed = 0;
};

// A server that a command talks to.
struct EndpointOptions {
  std::string url = "http://127.0.0.1:8080";  // without a path; the router's default
  std::string model;                          // sent as `model`; empty: left out, or asked for
  std::vector<std::string> api_keys;          // the first is sent. Never log or print them
  std::chrono::seconds timeout{600};          // for the head of an answer, and between two pieces of it
  bool insecure = false;                      // accept any certificate
};

// Load on a server, beside BenchLoad.
struct ServeLoad {
  double request_rate = 0;           // requests a second, Poisson arrivals; 0: by concurrency
  std::chrono::seconds duration{0};  // of a measurement: no request is started later; 0: no limit
  int vocab_size = 4000;             // random prompts are ids in [10, vocab_size)
  int shared_prefix_len = 0;         // first tokens that all prompts of a measurement share
  std::string prompts_file;          // JSONL; empty: random prompts
  int num_warmup = 2;
  std::string html_file;
  bool allow_remote = false;
};

// A server's part in a cluster of prefill, decode and router.
struct ClusterOptions {
  std::string secret_file;  // empty: no part in one
  int kv_port = 9100;       // serve-prefill; 0: the system picks one
};

struct ServeOptions {
  CommonOptions common;
  EngineConfig engine;  // engine.progress is empty: the command sets it (cmd/progress.h)
  ApiOptions api;
  ClusterOptions cluster;
};

struct ServeRouterOptions {
  CommonOptions common;
  ApiOptions api;  // of it what any server has: ports, keys, shutdown
  ClusterOptions cluster;
  RoutingOptions routing;
};

struct InspectOptions {
  CommonOptions common;
  std::string model_dir;
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
  int num_threads = 0;  // of the CPU backend; 0: one a core
};

struct DebugRequestOptions {
  CommonOptions common;
  EndpointOptions endpoint;
  std::string path = "/v1/chat/completions";
  std::string method;                // empty: POST with a body, GET without
  std::vector<std::string> headers;  // "Name: value"
  std::string body;                  // JSON, "@FILE" or "-"
  std::string message;               // a chat of one message, in place of a body
  int max_tokens = 0;                // with a message; 0: the server's default
  bool stream = true;                // with a message
};

struct BenchServeOptions {
  CommonOptions common;
  EndpointOptions endpoint;
  BenchLoad load;
  ServeLoad serve_load;
};

struct DocgenOptions {
  std::string root = ".";  // source tree that holds man/ and completions/
  bool check = false;      // compare, write nothing, fail with the names of files that differ
};

int serve_decode(const ServeOptions& options);          // cmd/serve.cpp
int serve_router(const ServeRouterOptions& options);    // cmd/serve_router.cpp
int serve_prefill(const ServeOptions& options);         // cmd/serve.cpp
int inspect(const InspectOptions& options);             // cmd/inspect.cpp
int bench_engine(const BenchEngineOptions& options);    // cmd/bench/bench.cpp
int bench_kernels(const BenchKernelsOptions& options);  // cmd/bench/kernels.cpp
int debug_request(const DebugRequestOptions& options);  // cmd/debug_request.cpp
int bench_serve(const BenchServeOptions& options);      // cmd/bench/serve.cpp
int docgen(const DocgenOptions& options);               // cmd/flags/docgen.cpp

}  // namespace moectl
