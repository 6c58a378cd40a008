// The flags of the serving commands: ports, keys, TLS, timeouts, the cluster. Part of the tables of flags.h.
#include "cmd/flags/table.h"

namespace moectl {
namespace {

constexpr std::string_view kServer = "Server", kCluster = "Cluster";

using Names = std::vector<std::string_view>;
const Names kDecode = {"serve-decode"};
const Names kPrefill = {"serve-prefill"};
const Names kServe = {"serve-decode", "serve-prefill"};
const Names kServers = {"serve-decode", "serve-prefill", "serve-router"};
const Names kKeyed = {"serve-decode", "serve-router", "serve-prefill", "debug-request", "bench serve"};

constexpr int kMaxTokens = 1 << 24;

std::vector<Flag> api_flags() {
  return {
      {.name = "host",
       .metavar = "ADDRESS",
       .group = kServer,
       .commands = kServers,
       .target = VALUE(api.host),
       .help = "Address to listen on; 0.0.0.0 for every interface"},
      {.name = "port",
       .metavar = "PORT",
       .group = kServer,
       .commands = kServers,
       .target = RAW(port),
       .help = "Port of the API; 0 lets the system pick one",
       .doc = "The line {\"ready\":true,\"url\":...} on stdout tells which.",
       .min = 0,
       .max = 65535,
       .shown_default = "8000; prefill 8100, router 8080"},
      {.name = "ops-port",
       .metavar = "PORT",
       .group = kServer,
       .commands = kServers,
       .target = VALUE(api.ops_port),
       .help = "Second port for health, metrics and admin",
       .doc = "Health and metrics are on the API port too; /server_info, /workers, /drain, /undrain and /flush_cache "
              "are on "
              "this port only. Calls that change something need `Authorization: Bearer` with an API key or the cluster "
              "secret; a server that has neither takes them from its own machine. 0 lets the system pick one.",
       .min = 0,
       .max = 65535,
       .shown_default = "off"},
      {.name = "ops-host",
       .metavar = "ADDRESS",
       .group = kServer,
       .commands = kServers,
       .target = VALUE(api.ops_host),
       .help = "Address of the operations port",
       .doc = "What can be read there needs no key: choose an address of a network that you trust."},
      {.name = "metrics-without-key",
       .group = kServer,
       .commands = kServers,
       .target = VALUE(api.metrics_without_key),
       .help = "Show /metrics on the API port without an API key",
       .doc =
           "With --api-key every path of the API port needs a key but /health, /liveness and /readiness, and with this "
           "flag /metrics."},
      {.name = "allow-debug-header",
       .group = kServer,
       .commands = kServers,
       .target = RAW(debug_header),
       .help = "Obey x-moectl-debug, which shows workers' addresses",
       .doc =
           "The answer to a request with that header tells which workers it went to and where its time went; `moectl "
           "debug-request` sends it. By default it is obeyed when --host is a loopback address. A worker always obeys "
           "its router.",
       .shown_default = "on loopback",
       .negatable = true},
      {.name = "api-key",
       .metavar = "KEY",
       .group = kServer,
       .commands = kKeyed,
       .target = VALUE(api.api_keys),
       .help = "API key: servers ask for it, clients send it",
       .doc = "Sent as `Authorization: Bearer KEY`. A server accepts any of several. Better set as MOECTL_API_KEY "
              "(several separated by commas): a command "
              "line is visible to other users of the machine.",
       .secret = true},
      {.name = "ssl-certfile",
       .metavar = "FILE",
       .group = kServer,
       .commands = kServers,
       .target = VALUE(api.ssl_certfile),
       .help = "Certificate chain (PEM); serves HTTPS",
       .doc = "Goes with --ssl-keyfile.",
       .completes = Completes::kFile},
      {.name = "ssl-keyfile",
       .metavar = "FILE",
       .group = kServer,
       .commands = kServers,
       .target = VALUE(api.ssl_keyfile),
       .help = "Private key (PEM) of the certificate",
       .completes = Completes::kFile},
      {.name = "shutdown-timeout",
       .metavar = "SECONDS",
       .group = kServer,
       .commands = kServers,
       .target = VALUE(shutdown_timeout),
       .help = "Time that running answers get after SIGTERM",
       .doc = "SIGINT counts as SIGTERM, and so does SIGHUP, unless the server was started with nohup. A second signal "
              "ends the server at once. A server that hangs is ended 10 s after this time, with exit status 1.",
       .min = 0,
       .max = 86400},
      {.name = "stall-timeout",
       .metavar = "SECONDS",
       .group = kServer,
       .commands = kServe,
       .target = VALUE(service.stall_timeout),
       .help = "Time without progress after which a busy server is stalled",
       .doc = "/health, /readiness and /load say so then: a router sends its requests elsewhere, and `moectl deploy` "
              "starts the worker again.",
       .min = 1,
       .max = 86400},
  };
}

std::vector<Flag> cluster_flags() {
  return {
      {.name = "cluster-secret-file",
       .metavar = "FILE",
       .group = kCluster,
       .commands = kServers,
       .target = VALUE(cluster_secret_file),
       .help = "File with the secret that all processes of a cluster share",
       .doc = "At least 16 bytes; `openssl rand -hex 32 > FILE` makes one. With it a decode worker obeys the router's "
              "headers and asks the prefill workers they name; without it, it computes everything itself. A prefill "
              "worker and a router do not start without it.",
       .completes = Completes::kFile},
      {.name = "kv-port",
       .metavar = "PORT",
       .group = kCluster,
       .commands = kPrefill,
       .target = RAW(kv_port),
       .help = "Port where decode workers ask for keys and values",
       .doc = "On the address of --host. 0 lets the system pick one; the ready line tells which.",
       .min = 0,
       .max = 65535},
      {.name = "local-prefill-tokens",
       .metavar = "N",
       .group = kCluster,
       .commands = kDecode,
       .target = VALUE(engine.local_prefill_tokens),
       .help = "Longest rest of a prompt that decode computes itself",
       .doc = "Counted after what the prefix cache holds. Below a page of 64 tokens a transfer saves next to nothing "
              "and costs a round trip. 0 sends every prompt of two tokens or more to a prefill worker.",
       .min = 0,
       .max = kMaxTokens},
  };
}

}  // namespace

std::vector<Flag> server_flags() {
  std::vector<Flag> all;
  for (auto part : {api_flags(), cluster_flags()}) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace moectl
