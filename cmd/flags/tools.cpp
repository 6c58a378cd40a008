// The flags of the commands that talk to a running server: debug-request and bench serve. Part of the tables of
// flags.h.
#include "cmd/flags/table.h"

namespace moectl {
namespace {

constexpr std::string_view kLoad = "Load", kEndpoint = "Server to talk to", kRequest = "Request";

using Names = std::vector<std::string_view>;
const Names kBenchServe = {"bench serve"};
const Names kDebug = {"debug-request"};
const Names kClients = {"debug-request", "bench serve"};

std::vector<Flag> serve_load_flags() {
  return {
      {.name = "request-rate",
       .metavar = "R",
       .group = kLoad,
       .commands = kBenchServe,
       .target = VALUE(serve_load.request_rate),
       .help = "Requests a second at random times, whatever is in flight",
       .doc = "Poisson arrivals, picked by --seed; one measurement, of 100 requests when neither --num-requests nor "
              "--duration is given. At most 4096 are in flight; one that would be beyond counts as an error.",
       .min = 0,
       .max = 100000,
       .shown_default = "by concurrency"},
      {.name = "duration",
       .metavar = "SECONDS",
       .group = kLoad,
       .commands = kBenchServe,
       .target = VALUE(serve_load.duration),
       .help = "Start no request later than this in a measurement",
       .doc = "Alone, without --num-requests, it fills the time with requests.",
       .min = 1,
       .max = 86400,
       .shown_default = "no limit"},
      {.name = "shared-prefix-len",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenchServe,
       .target = VALUE(serve_load.shared_prefix_len),
       .help = "First prompt tokens that all requests have in common",
       .doc = "Part of --input-len; what a prefix cache saves shows in the time to the first token. Each measurement "
              "has prompts of its own, so that none finds those of an earlier one in the cache.",
       .min = 0,
       .max = 1 << 24},
      {.name = "vocab-size",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenchServe,
       .target = VALUE(serve_load.vocab_size),
       .help = "Prompts are random token ids from 10 to below this",
       .doc = "Must not be larger than the model's vocabulary. The prompts go to /v1/completions as token ids, so "
              "that lengths are exact.",
       .min = 11,
       .max = 1 << 24},
      {.name = "prompts",
       .metavar = "FILE",
       .group = kLoad,
       .commands = kBenchServe,
       .target = VALUE(serve_load.prompts_file),
       .help = "Prompts of your own, in place of random ones",
       .doc = "One JSON object a line: {\"prompt\": ...} goes to /v1/completions, {\"messages\": [...]} to "
              "/v1/chat/completions. They are taken in turn, from the first again when there are too few.",
       .completes = Completes::kFile},
      {.name = "num-warmup",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenchServe,
       .target = VALUE(serve_load.num_warmup),
       .help = "Requests before the first measurement, not counted",
       .min = 0,
       .max = 10000},
      {.name = "html",
       .metavar = "FILE",
       .group = kLoad,
       .commands = kBenchServe,
       .target = VALUE(serve_load.html_file),
       .help = "Also write a report with charts, one file",
       .doc = "It loads nothing from the network and runs no script.",
       .completes = Completes::kFile},
      {.name = "allow-remote",
       .group = kLoad,
       .commands = kBenchServe,
       .target = VALUE(serve_load.allow_remote),
       .help = "Permit a server on another machine",
       .doc = "Without it only loopback addresses are taken: load on a machine is its owner's decision."},
  };
}

std::vector<Flag> endpoint_flags() {
  return {
      {.name = "url",
       .metavar = "URL",
       .group = kEndpoint,
       .commands = kClients,
       .target = VALUE(endpoint.url),
       .help = "Where the server is, without a path",
       .doc = "The default is the router's own; a decode worker alone listens on http://127.0.0.1:8000."},
      {.name = "model",
       .metavar = "NAME",
       .group = kEndpoint,
       .commands = kClients,
       .target = VALUE(endpoint.model),
       .help = "The name sent as `model`",
       .shown_default = "the server's own",
       .sources = Sources::kArgvOnly},
      {.name = "timeout",
       .metavar = "SECONDS",
       .group = kEndpoint,
       .commands = kClients,
       .target = VALUE(endpoint.timeout),
       .help = "Longest silence of the server that is borne",
       .doc = "Counts to the head of an answer, and again between two pieces of it.",
       .min = 1,
       .max = 86400},
      {.name = "insecure",
       .group = kEndpoint,
       .commands = kClients,
       .target = VALUE(endpoint.insecure),
       .help = "Accept any certificate of an https server"},
  };
}

std::vector<Flag> request_flags() {
  return {
      {.name = "message",
       .metavar = "TEXT",
       .group = kRequest,
       .commands = kDebug,
       .target = VALUE(debug.message),
       .help = "Say this: a chat of one message"},
      {.name = "max-tokens",
       .metavar = "N",
       .group = kRequest,
       .commands = kDebug,
       .target = VALUE(debug.max_tokens),
       .help = "Longest answer to --message, in tokens",
       .min = 1,
       .max = 1 << 24,
       .shown_default = "the server's"},
      {.name = "stream",
       .group = kRequest,
       .commands = kDebug,
       .target = VALUE(debug.stream),
       .help = "Ask for the answer to --message piece by piece",
       .negatable = true},
      {.name = "body",
       .metavar = "JSON",
       .group = kRequest,
       .commands = kDebug,
       .target = VALUE(debug.body),
       .help = "Send this; @FILE takes it from a file, - from stdin",
       .doc = "Sent as it is, so that a server's answer to a faulty body can be seen."},
      {.name = "path",
       .metavar = "PATH",
       .group = kRequest,
       .commands = kDebug,
       .target = VALUE(debug.path),
       .help = "Path and query"},
      {.name = "method",
       .metavar = "METHOD",
       .group = kRequest,
       .commands = kDebug,
       .target = VALUE(debug.method),
       .help = "HTTP method",
       .shown_default = "POST with a body, else GET"},
      {.name = "header",
       .metavar = "HEADER",
       .group = kRequest,
       .commands = kDebug,
       .target = VALUE(debug.headers),
       .help = "Send `Name: value` too; may be given repeatedly",
       .sources = Sources::kNotFile},
  };
}

}  // namespace

std::vector<Flag> tool_flags() {
  std::vector<Flag> all;
  for (auto part : {serve_load_flags(), endpoint_flags(), request_flags()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace moectl
