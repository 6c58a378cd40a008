// Rotation frequencies of a RopeConfig.
#pragma once

#include <vector>

#include "core/model/config.h"

namespace moectl {

// inv_freq[i] of pair i: theta^(-2i/dim), stretched by YaRN where it is configured (arXiv 2309.00071, section 3.4),
// [dim / 2].
std::vector<float> rope_inv_freq(const RopeConfig& rope);

}  // namespace moectl
