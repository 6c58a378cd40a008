// All2AllBackend: how experts' tokens travel between ranks (--all2all-backend). Pure; any thread.
#pragma once

#include <string_view>

#include "kernels/capabilities.h"

namespace moectl {

enum class All2AllBackend {
  kAuto,            // by the device and, on GPUs, by the number of tokens in a step
  kNaive,           // ranks read what they need in their peers' memory, between barriers: the oracle of the others
  kLowLatency,      // ranks store tokens and results into their peers' memory; made for few tokens (decode)
  kHighThroughput,  // the same; made for many (prefill)
};

std::string_view all2all_backend_name(All2AllBackend backend);
// Throws Error{kBadConfig} that lists the names.
All2AllBackend parse_all2all_backend(std::string_view name);
// What kAuto means to ranks on these devices: kNaive on the CPU, where a store costs as much as a read, and where ranks
// do not address each other's memory (peers_addressable false). On other GPUs it stays kAuto: each step takes
// kLowLatency or kHighThroughput by its number of tokens. The others are returned unchanged, or refused with
// Error{kBadConfig} where they need the peers' memory.
All2AllBackend resolve_all2all_backend(All2AllBackend backend, const Capabilities& capabilities,
                                       bool peers_addressable = true);

}  // namespace moectl
