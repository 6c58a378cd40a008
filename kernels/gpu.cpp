// The facts of gpu.h that need no card: they are tested in every build (tests/kernels/gpu_test.cpp).
#include "kernels/gpu.h"

#include "core/base/error.h"

namespace moectl {

void load_kernels_eagerly() {
  setenv("CUDA_MODULE_LOADING", "EAGER", 0);  // read by the driver when it is initialized
}

bool is_hopper(ComputeCapability card) {
  return card.major == 9 && card.minor == 0;
}

std::string why_no_kernels(ComputeCapability card, PlainKernels plain) {
  if (card.major < 8)
    return fmt::format("compute capability {}.{}; the kernels need {}", card.major, card.minor,
                       plain == PlainKernels::kEveryCard ? "8.0 (A100) or later" : "9.0 (Hopper)");
  if (plain == PlainKernels::kHopper && !is_hopper(card))
    return fmt::format(
        "compute capability {}.{}, and this moectl was built for 9.0 (Hopper) alone: build it with "
        "-DMOECTL_CUDA_PORTABLE=ON",
        card.major, card.minor);
  return {};
}

}  // namespace moectl
