// How much memory this process may still take: the machine's available memory, or less where a control group says so.
#pragma once

#include <cstdint>

namespace moectl {

// Bytes; INT64_MAX where the system does not tell.
int64_t available_memory_bytes();

}  // namespace moectl
