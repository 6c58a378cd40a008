// SHA-256, HMAC-SHA256, random bytes and a comparison that takes the same time whatever differs. Any thread. Who signs
// what is the caller's matter.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace moectl {

using Sha256 = std::array<uint8_t, 32>;

Sha256 sha256(std::string_view data);
Sha256 hmac_sha256(std::string_view key, std::string_view message);

// From the system's cryptographic generator; throws Error{kInternal} when it has none to give.
void random_bytes(void* out, size_t num_bytes);

// Lengths may be compared openly, contents in constant time.
bool constant_time_equal(std::string_view a, std::string_view b);

std::string to_hex(const void* data, size_t num_bytes);  // lower case
inline std::string to_hex(const Sha256& digest) {
  return to_hex(digest.data(), digest.size());
}

}  // namespace moectl
