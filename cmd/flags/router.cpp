// The flags of serve-router. Part of the tables of flags.h.
#include "cmd/flags/table.h"

namespace moectl {
namespace {

constexpr std::string_view kWorkers = "Workers", kRouting = "Routing";

using Names = std::vector<std::string_view>;
const Names kRouter = {"serve-router"};

std::vector<Flag> worker_flags() {
  return {
      {.name = "prefill",
       .metavar = "URL",
       .group = kWorkers,
       .commands = kRouter,
       .target = VALUE(router.prefill_urls),
       .help = "A prefill worker, http://HOST:PORT; may be given repeatedly",
       .doc = "Without one, decode workers compute prompts themselves."},
      {.name = "decode",
       .metavar = "URL",
       .group = kWorkers,
       .commands = kRouter,
       .target = VALUE(router.decode_urls),
       .help = "A decode worker, http://HOST:PORT; may be given repeatedly"},
      {.name = "workers-file",
       .metavar = "FILE",
       .group = kWorkers,
       .commands = kRouter,
       .target = VALUE(router.workers_file),
       .help = "The workers as a list in YAML or JSON, in place of the two",
       .doc = "Entries are {role: decode, url: http://HOST:PORT}. The file is read again when it changes; content that "
              "is not usable is logged and the workers stay as they were.",
       .completes = Completes::kFile},
  };
}

std::vector<Flag> routing_flags() {
  return {
      {.name = "policy",
       .metavar = "NAME",
       .group = kRouting,
       .commands = kRouter,
       .target = RAW(policy),
       .help = "How workers are chosen, where the role's own flag is not given",
       .shown_default = "by role"},
      {.name = "prefill-policy",
       .metavar = "NAME",
       .group = kRouting,
       .commands = kRouter,
       .target = RAW(prefill_policy),
       .help = "How a prefill worker is chosen",
       .doc = "One of prefix-cache, least-token, least-request, round-robin, power-of-two and random; cache_aware is "
              "another name of prefix-cache, and `_` counts as `-`.",
       .shown_default = "prefix-cache"},
      {.name = "decode-policy",
       .metavar = "NAME",
       .group = kRouting,
       .commands = kRouter,
       .target = RAW(decode_policy),
       .help = "How a decode worker is chosen",
       .shown_default = "least-token"},
      {.name = "prefix-cache-load-tolerance",
       .metavar = "X",
       .group = kRouting,
       .commands = kRouter,
       .target = VALUE(router.dispatcher.policy.prefix_cache_load_tolerance),
       .help = "Load over the mean, as a share, that a known prefix is worth",
       .min = 0,
       .max = 1000},
      {.name = "max-queue-size",
       .metavar = "N",
       .group = kRouting,
       .commands = kRouter,
       .target = VALUE(router.dispatcher.max_queue_size),
       .help = "Requests that may wait for a decode worker; more get 429",
       .min = 0,
       .max = 1 << 20},
      {.name = "queue-timeout",
       .metavar = "SECONDS",
       .group = kRouting,
       .commands = kRouter,
       .target = VALUE(router.queue_timeout),
       .help = "Longest wait for a decode worker; then 503",
       .min = 1,
       .max = 86400},
      {.name = "max-requests-per-worker",
       .metavar = "N",
       .group = kRouting,
       .commands = kRouter,
       .target = VALUE(router.dispatcher.max_requests_per_worker),
       .help = "Requests on one decode worker; more wait; 0 for no limit",
       .min = 0,
       .max = 1 << 20},
      {.name = "retry-max-retries",
       .metavar = "N",
       .group = kRouting,
       .commands = kRouter,
       .target = VALUE(router.max_retries),
       .help = "Further decode workers tried before the first byte of an answer",
       .min = 0,
       .max = 100},
      {.name = "cb-failure-threshold",
       .metavar = "N",
       .group = kRouting,
       .commands = kRouter,
       .target = VALUE(router.dispatcher.breaker.failure_threshold),
       .help = "Failed requests in a row that open a worker's circuit breaker",
       .min = 1,
       .max = 1 << 20},
      {.name = "cb-success-threshold",
       .metavar = "N",
       .group = kRouting,
       .commands = kRouter,
       .target = VALUE(router.dispatcher.breaker.success_threshold),
       .help = "Successful requests in a row that close it again",
       .min = 1,
       .max = 1 << 20},
      {.name = "cb-timeout",
       .metavar = "SECONDS",
       .group = kRouting,
       .commands = kRouter,
       .target = VALUE(router.dispatcher.breaker.timeout),
       .help = "Time before an open circuit breaker lets a request try",
       .min = 1,
       .max = 86400},
  };
}

}  // namespace

std::vector<Flag> router_flags() {
  std::vector<Flag> all;
  for (auto part : {worker_flags(), routing_flags()}) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace moectl
