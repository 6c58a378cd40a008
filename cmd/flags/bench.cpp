// The flags of `bench kernels` and `bench comm`, and shapes. Part of the tables of flags.h.
#include "cmd/flags/table.h"

namespace moectl {
namespace {

constexpr std::string_view kShapes = "Kernels and shapes", kRanks = "Ranks and tokens";
const std::vector<std::string_view> kBenchKernels = {"bench kernels"};
const std::vector<std::string_view> kBenchComm = {"bench comm"};
const std::vector<std::string_view> kShaped = {"serve-decode", "inspect", "bench engine", "bench kernels"};

std::vector<Flag> comm_flags() {
  return {
      {.name = "ep-size",
       .aliases = {"expert-parallel-size"},
       .metavar = "N",
       .group = kRanks,
       .commands = kBenchComm,
       .target = VALUE(comm.ep_size),
       .help = "Ranks, which hold equally many experts each",
       .min = 2,
       .max = 72,
       .sources = Sources::kArgvOnly},
      {.name = "tokens",
       .metavar = "N,N,...",
       .group = kRanks,
       .commands = kBenchComm,
       .target = VALUE(comm.tokens),
       .help = "Tokens per rank, one measurement each",
       .min = 1,
       .max = 1 << 17},
      {.name = "hidden-size",
       .metavar = "N",
       .group = kRanks,
       .commands = kBenchComm,
       .target = VALUE(comm.hidden_size),
       .help = "Values per token",
       .min = 1,
       .max = 1 << 16},
      {.name = "top-k",
       .metavar = "N",
       .group = kRanks,
       .commands = kBenchComm,
       .target = VALUE(comm.top_k),
       .help = "Experts per token",
       .doc = "Chosen at random, all equally likely, so a token goes to more ranks than with a model that limits them.",
       .min = 1,
       .max = 1024},
      {.name = "num-experts",
       .metavar = "N",
       .group = kRanks,
       .commands = kBenchComm,
       .target = VALUE(comm.num_experts),
       .help = "Experts of the layer; redundant ones fill up the ranks",
       .min = 1,
       .max = 65536},
      {.name = "dtype",
       .metavar = "DTYPE",
       .group = kRanks,
       .commands = kBenchComm,
       .target = VALUE(comm.dtype),
       .help = "What tokens are sent in; auto: the narrowest of the device",
       .doc = "Results come back in bf16, for f32 in f32. The CPU has f32 only.",
       .choices = {"auto", "fp8", "bf16", "f32"}},
      {.name = "collectives",
       .metavar = "NAME",
       .group = kRanks,
       .commands = kBenchComm,
       .target = VALUE(comm.collectives),
       .help = "Collectives to measure between ranks on GPUs",
       .doc = "both: p2p and NCCL side by side in one run; where one of them is not available, the output says why and "
              "only the other is measured. p2p, nccl: this one, or exit code 78. auto: the one that a server with "
              "--collectives auto uses. Ranks on the CPU exchange data through shared memory (`local`) and accept only "
              "both and auto.",
       .choices = {"auto", "p2p", "nccl", "both"},
       .sources = Sources::kArgvOnly},
      {.name = "iterations",
       .metavar = "N",
       .group = kRanks,
       .commands = kBenchComm,
       .target = VALUE(comm.iterations),
       .help = "Iterations of each measurement",
       .doc = "Fewer, down to 3, where a measurement would take longer than 3 seconds.",
       .min = 1,
       .max = 10000},
      {.name = "pause-ms",
       .metavar = "N",
       .group = kRanks,
       .commands = kBenchComm,
       .target = RAW(pause_ms),
       .help = "Milliseconds without work before an iteration after a pause",
       .min = 0,
       .max = 10000},
  };
}

}  // namespace

std::vector<Flag> bench_flags() {
  std::vector<Flag> all = comm_flags();
  const std::vector<Flag> kernels = {
      {.name = "filter",
       .metavar = "REGEX",
       .group = kShapes,
       .commands = kBenchKernels,
       .target = VALUE(kernels.filter),
       .help = "Time only kernels whose line holds this",
       .doc = "An ECMAScript regular expression, in any case, looked for in the kernel's name and shape as the table "
              "prints them: `gemm`, `^mla.* B128`.",
       .shown_default = "all"},
      {.name = "shape",
       .metavar = "NAME",
       .group = kShapes,
       .commands = kShaped,
       .target = RAW(shapes),
       .help = "Sizes of a published model, without a checkpoint",
       .doc = "deepseek-r1, ds-v2-lite, qwen3-30b-a3b, or tiny; NAME:layers=N is the first N layers. `bench kernels` "
              "takes several, and the sizes of deepseek-r1 and qwen3-30b-a3b without this flag. `inspect` takes one in "
              "place "
              "of a checkpoint. The others do, too, and make up its weights, random numbers of sane size: speed is "
              "that of a "
              "checkpoint of this shape, answers mean nothing, and a server takes and gives token ids only, as with "
              "--skip-tokenizer-init.",
       .shown_default = "none"},
  };
  all.insert(all.end(), kernels.begin(), kernels.end());
  return all;
}

}  // namespace moectl
