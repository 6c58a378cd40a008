// The tables: every command and every flag, with the words that --help and the man pages print. See flags.h for the
// meaning of the fields and CONTRIBUTING.md for how to add one.
#include <span>

#include "cmd/flags/flags.h"
#include "core/api/output_formats.h"

namespace moectl {
namespace {

constexpr std::string_view kModel = "Model", kParallel = "Parallelism", kBatching = "Memory and batching",
                           kHardware = "Hardware", kServer = "Server", kCluster = "Cluster", kLoad = "Load",
                           kDocs = "Documentation", kOutput = "Output and configuration";

using Names = std::vector<std::string_view>;
const Names kDecode = {"serve-decode"};
const Names kPrefill = {"serve-prefill"};
const Names kServe = {"serve-decode", "serve-prefill"};
const Names kServers = {"serve-decode", "serve-prefill", "serve-router"};
const Names kBenches = {"bench engine", "bench serve"};
const Names kDocgen = {"docgen"};
const Names kEngines = {"serve-decode", "serve-prefill", "bench engine"};
const Names kThreaded = {"serve-decode", "serve-prefill", "bench engine", "bench kernels"};
const Names kReports = {"inspect",     "bench engine", "bench kernels", "debug-request",
                        "bench serve", "deploy up",    "deploy status"};
const Names kCheckpoints = {"serve-decode", "serve-prefill", "inspect", "bench engine"};
const Names kConfigured = {"serve-decode", "serve-router",  "serve-prefill", "inspect",
                           "bench engine", "bench kernels", "debug-request", "bench serve"};
const Names kKeyed = {"serve-decode", "serve-router", "serve-prefill", "debug-request", "bench serve"};
const Names kEvery = {"serve-decode",  "serve-router",  "serve-prefill", "inspect", "bench engine",
                      "bench kernels", "debug-request", "bench serve",   "docgen",  "deploy up",
                      "deploy status", "deploy logs",   "deploy down"};

constexpr int64_t kMiB = 1ll << 20, kTiB = 1ll << 40;
constexpr int kMaxRanks = 1024, kMaxTokens = 1 << 24;

// The member a flag sets, as a plain function pointer whose type tells the table how to read the text.
#define MEMBER(type, path)                                     \
  Target {                                                     \
    MemberOf<type>([](Options& o) -> type& { return o.path; }) \
  }

// Completes a flag that names a row of a table of formats.
template <class Format>
Flag format_flag(Flag flag, std::span<const Format> formats) {
  flag.choices = {"auto", "none"};
  for (const Format& format : formats) {
    flag.choices.push_back(format.name);
    for (const std::string_view alias : api::aliases_of(format.aliases)) flag.synonyms.emplace_back(alias, format.name);
  }
  return flag;
}

std::vector<Flag> model_flags() {
  return {
      {.name = "model",
       .metavar = "MODEL",
       .group = kModel,
       .commands = kCheckpoints,
       .target = MEMBER(std::string, engine.model_dir),
       .help = "Checkpoint folder in Hugging Face layout",
       .doc =
           "The folder holds config.json, the safetensors files and, except with --skip-tokenizer-init, "
           "tokenizer.json. "
           "Nothing is downloaded and no code of the checkpoint is run. Without this flag the demo checkpoint is "
           "taken: models/demo below the current directory, else beside the executable's source tree or installation.",
       .shown_default = "models/demo",
       .completes = Completes::kFolder,
       .positional = true},
      {.name = "served-model-name",
       .metavar = "NAME",
       .group = kModel,
       .commands = kServe,
       .target = MEMBER(std::string, api.served_model_name),
       .help = "The name clients send as `model`",
       .doc = "Shown by GET /v1/models; a request with another name gets 404.",
       .shown_default = "the folder's name"},
      {.name = "max-model-len",
       .metavar = "N",
       .group = kModel,
       .commands = kEngines,
       .target = MEMBER(int, engine.max_model_len),
       .help = "Longest prompt and answer together, in tokens",
       .doc = "Never more than the checkpoint was made for.",
       .min = 1,
       .max = kMaxTokens,
       .shown_default = "the checkpoint's"},
      {.name = "skip-tokenizer-init",
       .group = kModel,
       .commands = kServe,
       .target = MEMBER(bool, api.skip_tokenizer_init),
       .help = "Load no tokenizer: prompts and answers are token ids",
       .doc =
           "For checkpoints without tokenizer.json. Only /v1/completions with lists of ids is served then. A prefill "
           "worker never loads one."},
      format_flag({.name = "reasoning-parser",
                   .metavar = "NAME",
                   .group = kModel,
                   .commands = kDecode,
                   .target = MEMBER(std::string, api.reasoning_parser),
                   .help = "How reasoning is told apart from the answer",
                   .doc = "auto decides by the checkpoint's chat template and tokenizer; none leaves the text alone; a "
                          "name picks a format (docs/formats.md). The names that other servers give them, and `-` for "
                          "`_`, are accepted."},
                  api::reasoning_formats()),
      format_flag(
          {.name = "tool-call-parser",
           .metavar = "NAME",
           .group = kModel,
           .commands = kDecode,
           .target = MEMBER(std::string, api.tool_call_parser),
           .help = "How tool calls are found in answers",
           .doc = "auto decides by the checkpoint's chat template; none refuses chats with tools; a name picks a "
                  "format (docs/formats.md), for templates that show no tools too. The names that other "
                  "servers give them, and `-` for `_`, are accepted."},
          api::tool_formats()),
  };
}

std::vector<Flag> parallel_flags() {
  return {
      {.name = "tensor-parallel-size",
       .aliases = {"tp-size"},
       .metavar = "N",
       .group = kParallel,
       .commands = kEngines,
       .target = MEMBER(int, parallel.tp_size),
       .help = "Ranks that share one attention layer; 1 is the only one yet",
       .min = 1,
       .max = kMaxRanks,
       .shown_default = "1",
       .environment = {"TP_SIZE"}},
      {.name = "data-parallel-size",
       .aliases = {"dp-size"},
       .metavar = "N",
       .group = kParallel,
       .commands = kEngines,
       .target = MEMBER(int, parallel.dp_size),
       .help = "Ranks that each run attention for their own requests",
       .doc = "Follows from the expert parallel size when that alone is given.",
       .min = 1,
       .max = kMaxRanks,
       .shown_default = "EP / TP",
       .environment = {"DP_SIZE"}},
      {.name = "expert-parallel-size",
       .aliases = {"ep-size"},
       .metavar = "N",
       .group = kParallel,
       .commands = kEngines,
       .target = MEMBER(int, parallel.ep_size),
       .help = "Ranks that the experts are spread over; must be TP x DP",
       .doc = "The number of experts of the checkpoint must be a multiple of it. Answers do not depend on it.",
       .min = 1,
       .max = kMaxRanks,
       .shown_default = "TP x DP",
       .environment = {"EP_SIZE"}},
  };
}

std::vector<Flag> batching_flags() {
  return {
      {.name = "max-num-seqs",
       .metavar = "N",
       .group = kBatching,
       .commands = kEngines,
       .target = MEMBER(int, engine.max_num_seqs),
       .help = "Requests that run at once, over all ranks",
       .doc = "Further ones wait.",
       .min = 1,
       .max = 65536},
      {.name = "max-num-batched-tokens",
       .metavar = "N",
       .group = kBatching,
       .commands = kEngines,
       .target = MEMBER(int, engine.max_num_batched_tokens),
       .help = "Tokens a rank computes in one step",
       .doc =
           "Longer prompts are computed in chunks of this size, between the steps of running answers: larger ones are "
           "faster, smaller ones make running answers wait less.",
       .min = 1,
       .max = 1 << 20,
       .shown_default = "512 on CPU, 2048 on a GPU"},
      {.name = "kv-cache-memory-bytes",
       .metavar = "BYTES",
       .group = kBatching,
       .commands = kEngines,
       .target = MEMBER(int64_t, engine.kv_cache_bytes),
       .help = "Memory of the KV cache, over all ranks: 512M, 2G, 1GiB",
       .doc = "On a GPU the cache takes what --gpu-memory-utilization leaves unless this is given. K, M, G, T and KiB, "
              "MiB, GiB, TiB are powers of 1024; k, m, g, t and KB, MB, GB, TB powers of 1000.",
       .min = kMiB,
       .max = 64 * kTiB,
       .shown_default = "256M on CPU"},
      {.name = "kv-cache-dtype",
       .metavar = "TYPE",
       .group = kBatching,
       .commands = kEngines,
       .target = MEMBER(std::string, engine.kv_cache_dtype),
       .help = "Number format of the KV cache; auto is f32 on CPU, bf16 on a GPU",
       .choices = {"auto", "f32", "bf16"}},
      {.name = "block-size",
       .metavar = "N",
       .group = kBatching,
       .commands = kEngines,
       .target = MEMBER(int, block_size),
       .help = "Tokens a page of the KV cache; 64 is the only one",
       .min = 1,
       .max = 1 << 20},
      {.name = "enable-prefix-caching",
       .group = kBatching,
       .commands = kServe,
       .target = MEMBER(bool, engine.enable_prefix_caching),
       .help = "Reuse the KV of prompts that begin alike",
       .doc = "Changes no answer, only the time to the first token.",
       .negatable = true},
  };
}

std::vector<Flag> hardware_flags() {
  return {
      {.name = "device",
       .metavar = "DEVICE",
       .group = kHardware,
       .commands = kThreaded,
       .target = MEMBER(std::string, engine.device),
       .help = "Where the model runs; auto takes the best that serves",
       .choices = {"auto", "cpu", "cuda"},
       .shown_default = "auto"},
      {.name = "cpu-path",
       .metavar = "PATH",
       .group = kHardware,
       .commands = kEngines,
       .target = MEMBER(std::string, engine.cpu_path),
       .help = "Instruction set of the CPU backend",
       .doc = "Answers are bit-identical within one path, not between paths.",
       .choices = {"auto", "avx512", "portable"}},
      {.name = "threads",
       .metavar = "N",
       .group = kHardware,
       .commands = kThreaded,
       .target = MEMBER(int, engine.num_threads),
       .help = "Compute threads, over all ranks",
       .min = 1,
       .max = 4096,
       .shown_default = "one a core"},
      {.name = "deterministic",
       .group = kHardware,
       .commands = kEngines,
       .target = MEMBER(bool, engine.deterministic),
       .help = "Same output bits whatever runs beside a request",
       .doc = "The CPU backend is always so: batch, chunks, prefix hits, threads and ranks change no bit. On a GPU it "
              "costs some speed."},
      {.name = "precise",
       .group = kHardware,
       .commands = kEngines,
       .target = MEMBER(bool, engine.precise),
       .help = "GPU: keep activations in f32, as the CPU computes",
       .doc =
           "Otherwise FP8 checkpoints are computed with FP8 activations and BF16 ones with BF16 activations, as they "
           "were trained: many times faster."},
      {.name = "portable-kernels",
       .group = kHardware,
       .commands = kEngines,
       .target = MEMBER(bool, engine.portable_kernels),
       .help = "GPU: compute on Hopper as on any other card",
       .doc = "Without the kernels that only Hopper (H100, H200) has: slower, and tells whether they are at fault when "
              "answers are wrong. Other cards compute so anyway."},
      {.name = "overlap-schedule",
       .group = kHardware,
       .commands = kEngines,
       .target = MEMBER(bool, engine.overlap_schedule),
       .help = "GPU: plan and launch the next step while one runs",
       .doc = "Changes no answer; without it the GPU waits for the host between two steps.",
       .negatable = true},
      {.name = "gpu-memory-utilization",
       .metavar = "SHARE",
       .group = kHardware,
       .commands = kEngines,
       .target = MEMBER(double, engine.gpu_memory_utilization),
       .help = "Share of a GPU's memory for weights, buffers and KV cache",
       .min = 0,
       .max = 1},
  };
}

std::vector<Flag> server_flags() {
  return {
      {.name = "host",
       .metavar = "ADDRESS",
       .group = kServer,
       .commands = kServers,
       .target = MEMBER(std::string, api.host),
       .help = "Address to listen on; 0.0.0.0 for every interface"},
      {.name = "port",
       .metavar = "PORT",
       .group = kServer,
       .commands = kServers,
       .target = MEMBER(int, api.port),
       .help = "Port of the API; 0 lets the system pick one",
       .doc = "The line {\"ready\":true,\"url\":...} on stdout tells which.",
       .min = 0,
       .max = 65535,
       .shown_default = "8000; prefill 8100, router 8080"},
      {.name = "ops-port",
       .metavar = "PORT",
       .group = kServer,
       .commands = kServers,
       .target = MEMBER(int, api.ops_port),
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
       .target = MEMBER(std::string, api.ops_host),
       .help = "Address of the operations port",
       .doc = "What can be read there needs no key: choose an address of a network that you trust."},
      {.name = "metrics-without-key",
       .group = kServer,
       .commands = kServers,
       .target = MEMBER(bool, api.metrics_without_key),
       .help = "Show /metrics on the API port without an API key",
       .doc =
           "With --api-key every path of the API port needs a key but /health, /liveness and /readiness, and with this "
           "flag /metrics."},
      {.name = "allow-debug-header",
       .group = kServer,
       .commands = kServers,
       .target = MEMBER(bool, api.debug_header),
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
       .target = MEMBER(std::vector<std::string>, api.api_keys),
       .help = "API key: servers ask for it, clients send it",
       .doc = "Sent as `Authorization: Bearer KEY`. A server accepts any of several. Better set as MOECTL_API_KEY "
              "(several separated by commas): a command "
              "line is visible to other users of the machine.",
       .secret = true},
      {.name = "ssl-certfile",
       .metavar = "FILE",
       .group = kServer,
       .commands = kServers,
       .target = MEMBER(std::string, api.ssl_certfile),
       .help = "Certificate chain (PEM); serves HTTPS",
       .doc = "Goes with --ssl-keyfile.",
       .completes = Completes::kFile},
      {.name = "ssl-keyfile",
       .metavar = "FILE",
       .group = kServer,
       .commands = kServers,
       .target = MEMBER(std::string, api.ssl_keyfile),
       .help = "Private key (PEM) of the certificate",
       .completes = Completes::kFile},
      {.name = "shutdown-timeout",
       .metavar = "SECONDS",
       .group = kServer,
       .commands = kServers,
       .target = MEMBER(std::chrono::seconds, api.shutdown_timeout),
       .help = "Time that running answers get after SIGTERM",
       .doc = "SIGINT counts as SIGTERM, and so does SIGHUP, unless the server was started with nohup. A second signal "
              "ends the server at once. A server that hangs is ended 10 s after this time, with exit status 1.",
       .min = 0,
       .max = 86400},
      {.name = "stall-timeout",
       .metavar = "SECONDS",
       .group = kServer,
       .commands = kServe,
       .target = MEMBER(std::chrono::seconds, api.stall_timeout),
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
       .target = MEMBER(std::string, cluster.secret_file),
       .help = "File with the secret that all processes of a cluster share",
       .doc = "At least 16 bytes; `openssl rand -hex 32 > FILE` makes one. With it a decode worker obeys the router's "
              "headers and asks the prefill workers they name; without it, it computes everything itself. A prefill "
              "worker and a router do not start without it.",
       .completes = Completes::kFile},
      {.name = "kv-port",
       .metavar = "PORT",
       .group = kCluster,
       .commands = kPrefill,
       .target = MEMBER(int, cluster.kv_port),
       .help = "Port where decode workers ask for keys and values",
       .doc = "On the address of --host. 0 lets the system pick one; the ready line tells which.",
       .min = 0,
       .max = 65535},
      {.name = "local-prefill-tokens",
       .metavar = "N",
       .group = kCluster,
       .commands = kDecode,
       .target = MEMBER(int, engine.local_prefill_tokens),
       .help = "Longest rest of a prompt that decode computes itself",
       .doc = "Counted after what the prefix cache holds. Below a page of 64 tokens a transfer saves next to nothing "
              "and costs a round trip. 0 sends every prompt of two tokens or more to a prefill worker.",
       .min = 0,
       .max = kMaxTokens},
  };
}

std::vector<Flag> load_flags() {
  return {
      {.name = "input-len",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenches,
       .target = MEMBER(int, load.input_len),
       .help = "Prompt tokens a request",
       .min = 1,
       .max = kMaxTokens},
      {.name = "output-len",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenches,
       .target = MEMBER(int, load.output_len),
       .help = "Tokens generated a request",
       .min = 1,
       .max = kMaxTokens},
      {.name = "concurrency",
       .metavar = "N,N,...",
       .group = kLoad,
       .commands = kBenches,
       .target = MEMBER(std::vector<int>, load.concurrency),
       .help = "Requests in flight, one measurement each",
       .min = 1,
       .max = 65536},
      {.name = "num-requests",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenches,
       .target = MEMBER(int, load.num_requests),
       .help = "Requests a measurement",
       .min = 1,
       .max = 1 << 20,
       .shown_default = "2 x the largest concurrency"},
      {.name = "seed",
       .metavar = "N",
       .group = kLoad,
       .commands = kBenches,
       .target = MEMBER(uint64_t, load.seed),
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
       .target = MEMBER(std::string, docgen.root),
       .help = "Source tree that holds man/ and completions/",
       .completes = Completes::kFolder},
      {.name = "check",
       .group = kDocs,
       .commands = kDocgen,
       .target = MEMBER(bool, docgen.check),
       .help = "Write nothing; fail and name the files that differ"},
  };
}

std::vector<Flag> output_flags() {
  return {
      {.name = "json",
       .group = kOutput,
       .commands = kReports,
       .target = MEMBER(bool, common.json),
       .help = "Print the result as JSON"},
      {.name = "config",
       .metavar = "FILE",
       .group = kOutput,
       .commands = kConfigured,
       .target = MEMBER(std::string, common.config_file),
       .help = "Read flags from a YAML file",
       .doc = "One `name: value` a line, named like the flags without dashes in front. A flag on the command line wins "
              "over the environment, and the environment over the file. A name that no flag has is an error.",
       .sources = Sources::kNotFile,
       .completes = Completes::kFile},
      {.name = "log-format",
       .metavar = "FORMAT",
       .group = kOutput,
       .commands = kConfigured,
       .target = MEMBER(std::string, common.log_format),
       .help = "Format of diagnostics on stderr",
       .doc = "A JSON line about a request has path, status, prompt_tokens, completion_tokens, prepare_seconds, "
              "ttft_seconds and total_seconds as fields, and error, param and code when it was refused or failed. What "
              "a client sent is never logged, except the names of fields.",
       .choices = {"text", "json"}},
      {.name = "log-level",
       .metavar = "LEVEL",
       .group = kOutput,
       .commands = kConfigured,
       .target = MEMBER(std::string, common.log_level),
       .help = "Least important diagnostics shown",
       .choices = {"debug", "info", "warn", "error"}},
      {.name = "no-color",
       .group = kOutput,
       .commands = kConfigured,
       .target = MEMBER(bool, common.no_color),
       .help = "No colours on a terminal",
       .environment = {"NO_COLOR"}},
      {.name = "help",
       .short_name = 'h',
       .group = kOutput,
       .commands = kEvery,
       .target = MEMBER(bool, help),
       .help = "Show this help",
       .sources = Sources::kArgvOnly},
      {.name = "version",
       .group = kOutput,
       .commands = kEvery,
       .target = MEMBER(bool, version),
       .help = "Show the version",
       .sources = Sources::kArgvOnly},
  };
}
#undef MEMBER

std::vector<Command> server_and_tool_commands() {
  return {
      {.name = "serve-decode",
       .summary = "Serve a checkpoint over the OpenAI API",
       .doc =
           "Loads a Mixture-of-Experts checkpoint and answers POST /v1/chat/completions and /v1/completions, streamed "
           "or not. When it is ready it prints one line of JSON with its URL on stdout. SIGTERM lets running answers "
           "finish.",
       .examples = {{"moectl serve-decode --port 8000", "the demo model"},
                    {"moectl serve-decode /data/model --ep-size 4 --kv-cache-memory-bytes 8G",
                     "experts over four ranks"},
                    {"MOECTL_API_KEY=secret moectl serve-decode --host 0.0.0.0", "open to the network, with a key"}},
       .run =
           [](const Options& o) {
             return serve_decode({o.common, o.engine, o.api, o.cluster});
           }},
      {.name = "serve-prefill",
       .summary = "Compute prompts for decode workers",
       .doc = "Loads a checkpoint, the same as the decode workers', and sends them keys and values of the prompts they "
              "ask for. It answers no requests of clients; its API port serves health, metrics and load. When it is "
              "ready it prints one line of JSON with its URL and its KV endpoint on stdout. SIGTERM lets running "
              "transfers finish.",
       .examples = {{"moectl serve-prefill --cluster-secret-file secret", "the demo model"},
                    {"moectl serve-prefill /data/model --host 10.0.0.5 --kv-port 9100 --cluster-secret-file secret",
                     "for decode workers on other machines"}},
       .run =
           [](const Options& o) {
             return serve_prefill({o.common, o.engine, o.api, o.cluster});
           }},
      {.name = "serve-router",
       .summary = "Route requests to prefill and decode workers",
       .doc =
           "Takes requests of the OpenAI API, picks a decode worker and up to three prefill workers for each, and "
           "passes the answer on. Requests wait in a bounded queue when all workers are busy, and go to another worker "
           "when one fails before the first byte. It is ready when a decode worker is: GET /readiness tells.",
       .examples =
           {{"moectl serve-router --prefill 127.0.0.1:8100 --decode 127.0.0.1:8000 --cluster-secret-file secret",
             "one worker of each role"},
            {"moectl serve-router --workers-file workers.yaml --cluster-secret-file secret --ops-port 9080",
             "workers from a file that may change"}},
       .run =
           [](const Options& o) {
             return serve_router({o.common, o.api, o.cluster, o.routing});
           }},
      {.name = "inspect",
       .summary = "Show what a checkpoint holds and needs",
       .doc = "Prints a checkpoint's architecture, parameters in total and at work on each token, tensors by number "
              "format, "
              "memory, and KV cache bytes a token. Reads headers only, so it takes no time on large checkpoints.",
       .examples = {{"moectl inspect models/demo", "a table"},
                    {"moectl inspect models/demo --json | jq .parameters", "for scripts"}},
       .run =
           [](const Options& o) {
             return inspect({o.common, o.engine.model_dir});
           }},
      {.name = "bench engine",
       .summary = "Measure prefill and decode speed without a server",
       .doc = "Runs made-up prompts through the engine and prints tokens a second of prefill and decode for each "
              "concurrency, with a hash of the output: equal hashes mean equal answers.",
       .examples = {{"moectl bench engine --concurrency 1,4,16", "the demo model under growing load"},
                    {"moectl bench engine models/demo --ep-size 2 --json", "for scripts"}},
       .run =
           [](const Options& o) {
             return bench_engine({o.common, o.engine, o.load});
           }},
      {.name = "bench kernels",
       .summary = "Time every kernel beside the machine's limits",
       .doc = "Measures the roofs first (how fast memory is read; how fast the matrix units multiply, through cuBLASLt "
              "where "
              "that library is present), then every kernel at the sizes of published models: time, achieved rate, "
              "share of "
              "the roof that bounds it, the time of a library or of a plain copy for the same work, and a hash of the "
              "output. Inputs are random and rotate, so that no cache serves repeats. The exit code is 1 when a kernel "
              "failed, 78 when --device cuda finds no GPU that serves or the build has no CUDA.",
       .examples = {{"moectl bench kernels", "all kernels, DeepSeek-R1's and Qwen3-30B-A3B's sizes"},
                    {"moectl bench kernels --shape deepseek-r1 --filter 'gemm.* 128x' --json", "some, for scripts"}},
       .run =
           [](const Options& o) {
             BenchKernelsOptions options = o.kernels;
             options.common = o.common;
             options.num_threads = o.engine.num_threads;
             options.device = o.engine.device;
             if (!o.shapes.empty()) options.shapes = o.shapes;
             return bench_kernels(options);
           }},
      {.name = "bench serve",
       .summary = "Measure a running server under load",
       .doc = "Sends streamed requests to a server of the OpenAI API and prints the time to the first token, the time "
              "between tokens, throughput and errors, for each concurrency or at a request rate. The exit code is 1 "
              "when any request failed. Ctrl-C ends it and prints what was measured so far.",
       .examples = {{"moectl bench serve --concurrency 1,4,16 --input-len 256 --output-len 64 --html report.html",
                     "growing load, with a report"},
                    {"moectl bench serve --url http://127.0.0.1:8000 --request-rate 2.5 --duration 60",
                     "a minute of random arrivals"},
                    {"moectl bench serve --prompts prompts.jsonl --json", "prompts of your own, for scripts"}},
       .run =
           [](const Options& o) {
             EndpointOptions endpoint = o.endpoint;
             endpoint.api_keys = o.api.api_keys;
             return bench_serve({o.common, endpoint, o.load, o.serve_load});
           }},
      {.name = "debug-request",
       .summary = "Send one request and show where its time went",
       .doc =
           "Sends any request to a router or worker and prints the status, the answer as it arrives, and the "
           "timeline: queue, routing with its candidates, prefill, KV transfer, first token and tokens a second. The "
           "exit code is 0 only when the status is 2xx and the answer is complete, 69 when the server cannot be "
           "reached.",
       .examples = {{"moectl debug-request --message 'What is 384 + 157?'", "a chat through the router"},
                    {"moectl debug-request --url http://127.0.0.1:8000 --path /v1/models", "any path of any server"},
                    {"moectl debug-request --body @request.json --header 'X-Session-Id: 7' --json", "for scripts"}},
       .run =
           [](const Options& o) {
             DebugRequestOptions options = o.debug;
             options.common = o.common;
             options.endpoint = o.endpoint;
             options.endpoint.api_keys = o.api.api_keys;
             return debug_request(options);
           }},
      {.name = "docgen",
       .summary = "Write man pages and completions from the table of flags",
       .doc = "For developers. Writes man/ and completions/ of the source tree.",
       .examples = {{"moectl docgen", "write the files"}, {"moectl docgen --check", "compare only"}},
       .run = [](const Options& o) { return docgen(o.docgen); },
       .hidden = true},
  };
}

}  // namespace

const std::vector<Command>& commands() {
  static const std::vector<Command> table = [] {
    std::vector<Command> all = server_and_tool_commands();
    const std::vector<Command> deploy = deploy_commands();
    all.insert(all.end() - 1, deploy.begin(), deploy.end());  // before docgen
    return all;
  }();
  return table;
}

const std::vector<Flag>& flags() {
  static const std::vector<Flag> table = [] {
    std::vector<Flag> all;
    for (auto part :
         {model_flags(), parallel_flags(), batching_flags(), hardware_flags(), bench_flags(), router_flags(),
          server_flags(), cluster_flags(), load_flags(), tool_flags(), deploy_flags(), docgen_flags(), output_flags()})
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
