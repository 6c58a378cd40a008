// The flags of the engine: model, parallelism, memory and batching, hardware. Part of the tables of flags.h.
#include <span>

#include "cmd/flags/table.h"
#include "core/api/output_formats.h"

namespace moectl {
namespace {

constexpr std::string_view kModel = "Model", kParallel = "Parallelism", kBatching = "Memory and batching",
                           kHardware = "Hardware";

using Names = std::vector<std::string_view>;
const Names kDecode = {"serve-decode"};
const Names kServe = {"serve-decode", "serve-prefill"};
const Names kEngines = {"serve-decode", "serve-prefill", "bench engine"};
const Names kRanked = {"serve-decode", "serve-prefill", "bench engine", "bench comm"};
const Names kSized = {"serve-decode", "serve-prefill", "inspect", "bench engine"};
const Names kThreaded = {"serve-decode", "serve-prefill", "bench engine", "bench kernels", "bench comm"};
const Names kCheckpoints = {"serve-decode", "serve-prefill", "inspect", "bench engine"};

constexpr int64_t kMiB = 1ll << 20, kTiB = 1ll << 40;
constexpr int kMaxRanks = 1024, kMaxTokens = 1 << 24;

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
       .target = RAW(model),
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
       .target = RAW(served_model_name),
       .help = "The name clients send as `model`",
       .doc = "Shown by GET /v1/models; a request with another name gets 404.",
       .shown_default = "the folder's name"},
      {.name = "max-model-len",
       .metavar = "N",
       .group = kModel,
       .commands = kSized,
       .target = VALUE(engine.max_model_len),
       .help = "Longest prompt and answer together, in tokens",
       .doc = "Never more than the checkpoint was made for.",
       .min = 1,
       .max = kMaxTokens,
       .shown_default = "the checkpoint's"},
      {.name = "skip-tokenizer-init",
       .group = kModel,
       .commands = kServe,
       .target = VALUE(service.skip_tokenizer_init),
       .help = "Load no tokenizer: prompts and answers are token ids",
       .doc =
           "For checkpoints without tokenizer.json. Only /v1/completions with lists of ids is served then. A prefill "
           "worker never loads one."},
      format_flag({.name = "reasoning-parser",
                   .metavar = "NAME",
                   .group = kModel,
                   .commands = kDecode,
                   .target = VALUE(service.reasoning_parser),
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
           .target = VALUE(service.tool_call_parser),
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
       .commands = kSized,
       .target = RAW(tp_size),
       .help = "Ranks that split each layer between them",
       .doc =
           "They hold parts of attention's heads, of dense layers and shared experts, and of the vocabulary. Answers "
           "depend on it in the last bits.",
       .min = 1,
       .max = kMaxRanks,
       .shown_default = "1",
       .environment = {"TP_SIZE"}},
      {.name = "data-parallel-size",
       .aliases = {"dp-size"},
       .metavar = "N",
       .group = kParallel,
       .commands = kSized,
       .target = RAW(dp_size),
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
       .commands = kSized,
       .target = RAW(ep_size),
       .help = "Ranks that the experts are placed on; must be TP x DP, or 1",
       .doc = "Where it does not divide the checkpoint's experts, redundant experts make up the difference. Answers do "
              "not depend on it. 1: the ranks of a TP group hold a part of every expert each.",
       .min = 1,
       .max = kMaxRanks,
       .shown_default = "TP x DP",
       .environment = {"EP_SIZE"}},
      {.name = "devices",
       .metavar = "N,N,...",
       .group = kParallel,
       .commands = kRanked,
       .target = RAW(devices),
       .help = "GPUs of the ranks, by ordinal; one per rank",
       .doc = "Ranks exchange rows of activations, so each GPU must be able to address the memory of the others (peer "
              "access). An ordinal that is given twice puts two ranks on one GPU, which is for tests.",
       .min = 0,
       .max = 63,
       .shown_default = "0,1,2,..."},
      {.name = "collectives",
       .metavar = "NAME",
       .group = kParallel,
       .commands = kEngines,
       .target = RAW(collectives),
       .help = "How ranks on GPUs exchange activations",
       .doc = "p2p: GPUs read and write each other's memory, which needs peer access between all of them. nccl: "
              "NVIDIA's library NCCL, 2.28 or later, which is looked for at run time (MOECTL_NCCL in the environment "
              "is the path of libnccl.so.2 or its folder) and takes one rank per GPU. auto is p2p where there is peer "
              "access, else nccl. With --deterministic both give the same bits.",
       .choices = {"auto", "p2p", "nccl"}},
      {.name = "all2all-backend",
       .metavar = "NAME",
       .group = kParallel,
       .commands = kRanked,
       .target = RAW(all2all_backend),
       .help = "How tokens travel between ranks and their experts",
       .doc =
           "naive: ranks read each other's memory between barriers. low_latency and high_throughput: ranks store into "
           "each other's memory; the first is made for few tokens per step (decode), the second for many (prefill). "
           "auto: naive on the CPU; on GPUs low_latency or high_throughput, step by step. No effect with one rank. "
           "docs/parallelism.md compares them.",
       .choices = {"auto", "naive", "low_latency", "high_throughput"},
       .synonyms = {{"low-latency", "low_latency"}, {"high-throughput", "high_throughput"}}},
      {.name = "num-redundant-experts",
       .metavar = "N",
       .group = kParallel,
       .commands = kSized,
       .target = VALUE(engine.num_redundant_experts),
       .help = "Redundant experts per MoE layer, for expert parallelism",
       .doc = "Further copies of experts, which take part of their tokens. The expert parallel size must divide the "
              "sum of "
              "the checkpoint's experts and these. Answers do not depend on it.",
       .max = 1 << 16,
       .shown_default = "as few as make the experts divide"},
      {.name = "enable-eplb",
       .group = kParallel,
       .commands = kEngines,
       .target = RAW(enable_eplb),
       .help = "Move experts between ranks by their load; not in this version",
       .doc =
           "Redundant experts are placed once, at the start (--num-redundant-experts). The load of the experts is in "
           "/metrics (moectl_expert_load) and in the report of bench engine."},
      {.name = "eplb-step-interval",
       .metavar = "N",
       .group = kParallel,
       .commands = kEngines,
       .target = RAW(eplb_step_interval),
       .help = "Steps between two moves of experts; not in this version",
       .min = 1},
      {.name = "enable-dbo",
       .group = kParallel,
       .commands = kEngines,
       .target = RAW(enable_dbo),
       .help = "Two-batch overlap; not in this version"},
  };
}

std::vector<Flag> batching_flags() {
  return {
      {.name = "max-num-seqs",
       .metavar = "N",
       .group = kBatching,
       .commands = kEngines,
       .target = VALUE(engine.max_num_seqs),
       .help = "Requests that run at once, over all ranks",
       .doc = "Further ones wait.",
       .min = 1,
       .max = 65536},
      {.name = "max-num-batched-tokens",
       .metavar = "N",
       .group = kBatching,
       .commands = kEngines,
       .target = VALUE(engine.max_num_batched_tokens),
       .help = "Tokens per rank per step",
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
       .target = VALUE(engine.kv_cache_bytes),
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
       .target = VALUE(engine.kv_cache_dtype),
       .help = "Data type of the KV cache; auto is f32 on CPU, bf16 on a GPU",
       .doc = "fp8 is not in this version.",
       .choices = {"auto", "f32", "bf16", "fp8"}},
      {.name = "block-size",
       .metavar = "N",
       .group = kBatching,
       .commands = kEngines,
       .target = RAW(block_size),
       .help = "Tokens per page of the KV cache; 64 is the only size",
       .min = 1,
       .max = 1 << 20},
      {.name = "enable-prefix-caching",
       .group = kBatching,
       .commands = kServe,
       .target = VALUE(engine.enable_prefix_caching),
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
       .target = RAW(device),
       .help = "Where the model runs; auto takes the best that serves",
       .choices = {"auto", "cpu", "cuda"}},
      {.name = "cpu-path",
       .metavar = "PATH",
       .group = kHardware,
       .commands = kEngines,
       .target = VALUE(engine.cpu_path),
       .help = "Instruction set of the CPU backend",
       .doc = "Answers are bit-identical within one path, not between paths.",
       .choices = {"auto", "avx512", "portable"}},
      {.name = "threads",
       .metavar = "N",
       .group = kHardware,
       .commands = kThreaded,
       .target = RAW(num_threads),
       .help = "Compute threads, over all ranks",
       .min = 1,
       .max = 4096,
       .shown_default = "one per core"},
      {.name = "deterministic",
       .group = kHardware,
       .commands = kEngines,
       .target = VALUE(engine.deterministic),
       .help = "Same output bits whatever runs beside a request",
       .doc = "The CPU backend is always so: batch, chunks, prefix hits, threads and ranks change no bit. On a GPU it "
              "costs some speed."},
      {.name = "precise",
       .group = kHardware,
       .commands = kEngines,
       .target = VALUE(engine.precise),
       .help = "GPU: keep activations in f32, as the CPU computes",
       .doc =
           "Otherwise FP8 checkpoints are computed with FP8 activations and BF16 ones with BF16 activations, as they "
           "were trained: many times faster."},
      {.name = "portable-kernels",
       .group = kHardware,
       .commands = kEngines,
       .target = VALUE(engine.portable_kernels),
       .help = "GPU: portable kernels on Hopper too",
       .doc = "Without the kernels that only Hopper (H100, H200) has: slower, and tells whether they are at fault when "
              "answers are wrong. Other cards compute so anyway."},
      {.name = "overlap-schedule",
       .group = kHardware,
       .commands = kEngines,
       .target = VALUE(engine.overlap_schedule),
       .help = "GPU: plan and launch the next step while one runs",
       .doc = "Changes no answer; without it the GPU waits for the host between two steps.",
       .negatable = true},
      {.name = "gpu-memory-utilization",
       .metavar = "SHARE",
       .group = kHardware,
       .commands = kSized,
       .target = VALUE(engine.gpu_memory_utilization),
       .help = "Share of a GPU's memory for weights, buffers and KV cache",
       .min = 0,
       .max = 1},
      {.name = "gpu-memory-gb",
       .metavar = "GB",
       .group = kHardware,
       .commands = {"inspect"},
       .target = RAW(gpu_memory_gb),
       .help = "Say what fits on a GPU of this size; GB are powers of 1000",
       .doc =
           "What --gpu-memory-utilization leaves of it holds the weights of a rank, 6 GB of buffers and the KV cache "
           "in bf16. A rank fits when one sequence of --max-model-len does.",
       .min = 1,
       .max = 100000,
       .shown_default = "no such question"},
  };
}

}  // namespace

std::vector<Flag> engine_flags() {
  std::vector<Flag> all;
  for (auto part : {model_flags(), parallel_flags(), batching_flags(), hardware_flags()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace moectl
