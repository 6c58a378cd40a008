// The table of flags, put together from the files beside this one, and the flags that most commands have. See flags.h
// for the meaning of the fields and CONTRIBUTING.md for how to add one.
#include "cmd/flags/table.h"

namespace moectl {
namespace {

constexpr std::string_view kLoad = "Load", kDocs = "Documentation", kOutput = "Output and configuration";

using Names = std::vector<std::string_view>;
const Names kBenches = {"bench engine", "bench serve"};
const Names kDocgen = {"docgen"};
const Names kReports = {"inspect",       "bench engine", "bench kernels", "bench comm",
                        "debug-request", "bench serve",  "deploy up",     "deploy status"};
const Names kConfigured = {"serve-decode",  "serve-router", "serve-prefill", "inspect",    "bench engine",
                           "bench kernels", "bench comm",   "debug-request", "bench serve"};
const Names kEvery = {"serve-decode",  "serve-router",  "serve-prefill", "inspect",     "bench engine",
                      "bench kernels", "bench comm",    "debug-request", "bench serve", "docgen",
                      "deploy up",     "deploy status", "deploy logs",   "deploy down"};

constexpr int kMaxTokens = 1 << 24;

std::vector<Flag> load_flags() {
  return {
      {.name = "input-len",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenches,
       .target = VALUE(load.input_len),
       .help = "Prompt tokens per request",
       .min = 1,
       .max = kMaxTokens},
      {.name = "output-len",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenches,
       .target = VALUE(load.output_len),
       .help = "Output tokens per request",
       .min = 1,
       .max = kMaxTokens},
      {.name = "concurrency",
       .metavar = "N,N,...",
       .group = kLoad,
       .commands = kBenches,
       .target = VALUE(load.concurrency),
       .help = "Requests in flight, one measurement each",
       .min = 1,
       .max = 65536},
      {.name = "num-requests",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenches,
       .target = VALUE(load.num_requests),
       .help = "Requests per measurement",
       .min = 1,
       .max = 1 << 20,
       .shown_default = "2 x the largest concurrency"},
      {.name = "seed",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenches,
       .target = VALUE(load.seed),
       .help = "Picks the prompts",
       .doc = "Equal seeds give equal prompts and, on one path, equal output hashes.",
       .max = INT64_MAX},
  };
}

std::vector<Flag> docgen_flags() {
  return {
      {.name = "root",
       .metavar = "DIR",
       .group = kDocs,
       .commands = kDocgen,
       .target = VALUE(docgen.root),
       .help = "Source tree that holds man/ and completions/",
       .completes = Completes::kFolder},
      {.name = "check",
       .group = kDocs,
       .commands = kDocgen,
       .target = VALUE(docgen.check),
       .help = "Write nothing; fail and name the files that differ"},
  };
}

std::vector<Flag> output_flags() {
  return {
      {.name = "json",
       .group = kOutput,
       .commands = kReports,
       .target = VALUE(common.json),
       .help = "Print the result as JSON"},
      {.name = "config",
       .metavar = "FILE",
       .group = kOutput,
       .commands = kConfigured,
       .target = RAW(config_file),
       .help = "Read flags from a YAML file",
       .doc = "One `name: value` a line, named like the flags without dashes in front. A flag on the command line wins "
              "over the environment, and the environment over the file. A name that no flag has is an error.",
       .sources = Sources::kNotFile,
       .completes = Completes::kFile},
      {.name = "log-format",
       .metavar = "FORMAT",
       .group = kOutput,
       .commands = kConfigured,
       .target = VALUE(common.log_format),
       .help = "Format of diagnostics on stderr",
       .doc = "A JSON line about a request has path, status, prompt_tokens, completion_tokens, prepare_seconds, "
              "ttft_seconds and total_seconds as fields, and error, param and code when it was refused or failed. What "
              "a client sent is never logged, except the names of fields.",
       .choices = {"text", "json"}},
      {.name = "log-level",
       .metavar = "LEVEL",
       .group = kOutput,
       .commands = kConfigured,
       .target = VALUE(common.log_level),
       .help = "Least important diagnostics shown",
       .choices = {"debug", "info", "warn", "error"}},
      {.name = "no-color",
       .group = kOutput,
       .commands = kConfigured,
       .target = VALUE(common.no_color),
       .help = "No colours on a terminal",
       .environment = {"NO_COLOR"}},
      {.name = "help",
       .short_name = 'h',
       .group = kOutput,
       .commands = kEvery,
       .target = RAW(help),
       .help = "Show this help",
       .sources = Sources::kArgvOnly},
      {.name = "version",
       .group = kOutput,
       .commands = kEvery,
       .target = RAW(version),
       .help = "Show the version",
       .sources = Sources::kArgvOnly},
  };
}

}  // namespace

const std::vector<Flag>& flags() {
  static const std::vector<Flag> table = [] {
    std::vector<Flag> all;
    for (auto part : {engine_flags(), bench_flags(), router_flags(), server_flags(), load_flags(), tool_flags(),
                      deploy_flags(), docgen_flags(), output_flags()})
      all.insert(all.end(), part.begin(), part.end());
    return all;
  }();
  return table;
}

std::vector<std::string_view> groups() {
  std::vector<std::string_view> result;
  for (const Flag& flag : flags())
    if (result.empty() || result.back() != flag.group) result.push_back(flag.group);
  return result;
}

}  // namespace moectl
