// File descriptors of the process: how many there are, what the connections of a data port may take of them, and what
// stays for everything else. Every server computes its cap here, so that the parts of one process fit together.
#pragma once

#include <cstddef>

namespace moectl::http {

struct DescriptorPlan {
  size_t limit = 0;             // soft limit of the process (ulimit -n)
  size_t reserve = 0;           // operations port, probes, KV transfers, files, event loops
  size_t max_connections = 0;   // of the data port
  size_t max_idle_clients = 0;  // connections to workers that are kept for later; part of the reserve
};

inline constexpr size_t kMaxDescriptors = 1 << 20;  // raise_descriptor_limit() asks for no more
// Of an operations port, whose connections come out of the reserve.
inline constexpr size_t kMaxOpsConnections = 24;

// `descriptors_per_connection`: 1 for a server that answers itself, 2 for one that holds a connection to a worker for
// each request.
DescriptorPlan plan_descriptors(size_t limit, size_t descriptors_per_connection);

// The soft limit; kMaxDescriptors when there is none.
size_t descriptor_limit();
// Sets the soft limit to the hard limit, at most kMaxDescriptors, and returns it. Once, before servers are made.
size_t raise_descriptor_limit();

// Of an errno: the process or the machine has no descriptor or no memory for a socket. The peer is not at fault.
bool is_out_of_descriptors(int error);
// Whether another descriptor can be opened now. For failures that do not carry an errno, such as those of getaddrinfo.
bool has_free_descriptor();

}  // namespace moectl::http
