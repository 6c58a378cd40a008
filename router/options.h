// What the router is configured with, resolved. Plain data.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/service/api_options.h"

namespace moectl::router {

struct WorkerAddress;

struct PolicyOptions {
  double prefix_cache_load_tolerance = 0.3;  // a hit is passed over when its load > mean x (1 + this)
  size_t max_prefix_blocks = 262'144;
  uint64_t seed = 0;  // of the policies that draw
};

struct BreakerOptions {
  int failure_threshold = 10;  // failures in a row that open it
  int success_threshold = 3;   // successes in a row that close it again
  std::chrono::seconds timeout{60};
};

struct DispatcherOptions {
  std::string prefill_policy = "prefix-cache", decode_policy = "least-token";
  PolicyOptions policy;
  BreakerOptions breaker;
  // Both count choices: what n and a list of prompts ask for.
  int max_queue_size = 512;
  int max_requests_per_worker = 256;  // on one decode worker, from this router; more wait; 0: no limit
};

struct RouterOptions {
  ApiOptions api;  // the first of its keys goes with the router's own probes
  std::vector<std::string> prefill_urls, decode_urls;
  std::string workers_file;  // instead of the two lists; read again when it changes
  std::string cluster_secret;
  DispatcherOptions dispatcher;
  std::chrono::seconds queue_timeout{60};
  int max_retries = 3;
  // The content of the workers file. Throws Error{kBadData, kNotFound}.
  std::function<std::vector<WorkerAddress>(const std::string& path)> read_workers_file;
  std::chrono::milliseconds probe_interval{1000}, probe_timeout{2000};
};

}  // namespace moectl::router
