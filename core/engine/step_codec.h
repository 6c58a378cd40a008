// Plans and results of a step as bytes, for ranks in other processes. Pure: no sockets, no threads.
//
// An encoding is a header {u32 magic, u16 version, u16 kind, u32 body_bytes} and the body: the fields of step.h in
// their order, little-endian, fixed width; a vector or string is a u32 count and its elements, an optional a byte 0
// or 1. Both sides run the same version of moectl, so fields are added by raising the version.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/engine/step.h"

namespace moectl {

inline constexpr uint16_t kStepCodecVersion = 2;

std::vector<std::byte> encode(const RankStepPlan& plan);
std::vector<std::byte> encode(const RankStepResult& result);

// Throw Error{kBadData} unless `bytes` is exactly one encoding whose values are consistent in themselves (ranges,
// counts). Memory is bounded by a small multiple of bytes.size(). Whether a plan continues the plans before it, and
// fits the model, SequenceMirrors checks.
RankStepPlan decode_step_plan(std::span<const std::byte> bytes);
RankStepResult decode_step_result(std::span<const std::byte> bytes);

}  // namespace moectl
