// The table of commands: what each does, for --help and the man pages, and which blocks of the options it takes.
#include "cmd/flags/table.h"

namespace moectl {
namespace {

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
             return serve_decode({o.engine, o.service, o.cluster_secret_file, o.shutdown_timeout});
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
             return serve_prefill({o.engine, o.service, o.cluster_secret_file, o.shutdown_timeout});
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
             return serve_router({o.router, o.cluster_secret_file, o.shutdown_timeout});
           }},
      {.name = "inspect",
       .summary = "Show what a checkpoint holds and needs",
       .doc =
           "Prints a checkpoint's architecture, parameters in total and at work on each token, tensors by number "
           "format, "
           "memory, and KV cache bytes per token. Reads headers only, so it takes no time on large checkpoints. "
           "config.json alone suffices. With a parallel size or --gpu-memory-gb it also prints what each rank holds, "
           "and the smallest expert parallel size that fits.",
       .examples = {{"moectl inspect models/demo", "a table"},
                    {"moectl inspect --shape deepseek-r1 --ep-size 8 --gpu-memory-gb 141",
                     "memory per rank, without a checkpoint"},
                    {"moectl inspect models/demo --json | jq .parameters", "for scripts"}},
       .run =
           [](const Options& o) {
             return inspect({o.common, o.engine.model_dir, o.engine.shape, o.ranks});
           }},
      {.name = "bench engine",
       .summary = "Measure prefill and decode speed without a server",
       .doc = "Runs random prompts through the engine and prints tokens per second of prefill and decode for each "
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
             return bench_kernels(options);
           }},
      {.name = "bench comm",
       .summary = "Time what ranks exchange beside the limits of their link",
       .doc =
           "Measures the link first (how fast ranks store to and load from each other's memory, how fast the copy "
           "engine is, how long a flag takes), then barrier, and for each number of tokens per rank all-gather, "
           "dispatch and combine of the expert all-to-all, in both forms of combine, and the all-reduce of TP groups: "
           "over p2p and over NCCL, back to back and after a pause. "
           "A time is that of the slowest rank; it includes quantizing, sorting and adding. On GPUs the device's clock "
           "is read inside CUDA graphs. The exit code is 1 when an output changed between iterations, 69 when a rank "
           "failed, 78 when --device cuda finds no GPU for a rank, or --collectives names what these GPUs cannot do.",
       .examples = {{"moectl bench comm --ep-size 2", "two GPUs, DeepSeek-R1's sizes"},
                    {"moectl bench comm --ep-size 8 --tokens 128 --all2all-backend low_latency --json", "for scripts"},
                    {"moectl bench comm --ep-size 4 --collectives nccl", "NCCL alone"},
                    {"moectl bench comm --device cpu --tokens 1,16 --hidden-size 512", "two threads of a CPU"}},
       .run =
           [](const Options& o) {
             return bench_comm(BenchCommOptions{o.common, o.comm});
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
             return bench_serve({o.common, o.endpoint, o.load, o.serve_load});
           }},
      {.name = "debug-request",
       .summary = "Send one request and show where its time went",
       .doc =
           "Sends any request to a router or worker and prints the status, the answer as it arrives, and the "
           "timeline: queue, routing with its candidates, prefill, KV transfer, first token and tokens per second. The "
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

}  // namespace moectl
