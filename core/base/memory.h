// What the machine's memory gives: how much this process may still take (less than is available where a control group
// says so), and how fast it reads.
#pragma once

#include <cstdint>

namespace moectl {

// Bytes; INT64_MAX where the system does not say.
int64_t available_memory_bytes();

// Bytes per second that `num_threads` threads read from memory, best of five passes over more than any cache holds.
double memory_read_bandwidth(int num_threads);

}  // namespace moectl
