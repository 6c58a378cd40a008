// The flags of `bench kernels`, and shapes. Part of the tables of flags.h.
#include "cmd/flags.h"
#include "core/model/shapes.h"

namespace moectl {
namespace {

constexpr std::string_view kKernels = "Kernels and shapes";
const std::vector<std::string_view> kBenchKernels = {"bench kernels"};
const std::vector<std::string_view> kMadeUp = {"bench engine", "serve-decode"};

#define MEMBER(type, path)                                     \
  Target {                                                     \
    MemberOf<type>([](Options& o) -> type& { return o.path; }) \
  }

}  // namespace

std::vector<Flag> bench_flags() {
  return {
      {.name = "device",
       .metavar = "DEVICE",
       .group = kKernels,
       .commands = kBenchKernels,
       .target = MEMBER(std::string, kernels.device),
       .help = "Whose kernels are timed; auto takes a GPU if there is one",
       .choices = {"auto", "cpu", "cuda"}},
      {.name = "filter",
       .metavar = "REGEX",
       .group = kKernels,
       .commands = kBenchKernels,
       .target = MEMBER(std::string, kernels.filter),
       .help = "Time only kernels whose line holds this",
       .doc = "An ECMAScript regular expression, in any case, looked for in the kernel's name and shape as the table "
              "prints them: `gemm`, `^mla.* 128x`.",
       .shown_default = "all"},
      {.name = "shape",
       .metavar = "NAME",
       .group = kKernels,
       .commands = kBenchKernels,
       .target = MEMBER(std::vector<std::string>, kernels.shapes),
       .help = "Whose sizes are taken; may be given repeatedly",
       .choices = shape_names()},
      {.name = "shape",
       .metavar = "NAME",
       .group = kKernels,
       .commands = kMadeUp,
       .target = MEMBER(std::string, engine.shape),
       .help = "Made-up weights of this shape in place of a checkpoint",
       .doc =
           "deepseek-r1, ds-v2-lite, qwen3-30b-a3b, or tiny; NAME:layers=N takes the first N layers. Random numbers "
           "of sane size, made in memory: speed is that of a checkpoint of this shape, answers mean nothing. A server "
           "takes and gives token ids only, as with --skip-tokenizer-init.",
       .shown_default = "none"},
  };
}
#undef MEMBER

}  // namespace moectl
