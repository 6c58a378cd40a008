// Published models as shapes, without a checkpoint: what benchmarks build weights or single kernels of. The text of
// each is its config.json as far as it changes sizes or arithmetic.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/model/config.h"

namespace moectl {

std::vector<std::string_view> shape_names();

// "qwen3-30b-a3b", or "deepseek-r1:layers=8" for the first eight layers of it. No layers of multi-token prediction.
// Throws Error{kUsage} that names the shapes there are.
Config shape_config(std::string_view text);

}  // namespace moectl
