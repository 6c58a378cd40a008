// The two roles of a worker in a cluster. A decode worker answers requests, and lets prefill workers compute long
// prompts when it can; a prefill worker computes prompts for decode workers and answers no clients.
#pragma once

#include <cstdint>
#include <string_view>

namespace moectl {

enum class Role : uint16_t { kDecode = 1, kPrefill = 2 };  // the numbers are those of the KV transfer's Hello message

inline std::string_view name_of(Role role) {
  return role == Role::kPrefill ? "prefill" : role == Role::kDecode ? "decode" : "?";  // "?": a number off the wire
}

}  // namespace moectl
