// The flags of `bench kernels`, and shapes. Part of the tables of flags.h.
#include "cmd/flags/table.h"

namespace moectl {
namespace {

constexpr std::string_view kShapes = "Kernels and shapes";
const std::vector<std::string_view> kBenchKernels = {"bench kernels"};
const std::vector<std::string_view> kShaped = {"serve-decode", "bench engine", "bench kernels"};

}  // namespace

std::vector<Flag> bench_flags() {
  return {
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
              "takes several, and the sizes of deepseek-r1 and qwen3-30b-a3b without this flag. The others take one in "
              "place of a checkpoint and make up its weights, random numbers of sane size: speed is that of a "
              "checkpoint of this shape, answers mean nothing, and a server takes and gives token ids only, as with "
              "--skip-tokenizer-init.",
       .shown_default = "none"},
  };
}

}  // namespace moectl
