// Communicator: what the ranks of an instance need of each other. One object a rank, used from that rank's thread only
// (abort from any). Local implementation: ranks are threads of one process that share an address space.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace moectl {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Returns when every rank has called it. Throws Error{kUnavailable} once any rank has aborted: nobody waits for a
  // dead peer.
  virtual void barrier() = 0;
  // Pointers of all ranks, by rank; the peers' memory may be read until the next exchange of the same rank.
  virtual std::vector<const void*> all_gather(const void* mine) = 0;
  // Wakes all waiting ranks with an error; final.
  virtual void abort(const std::string& reason) = 0;
};

// `size` communicators of one group of threads.
std::vector<std::unique_ptr<Communicator>> make_local_communicators(int size);

}  // namespace moectl
