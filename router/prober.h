// Watches the workers: asks each for its load about once a second, and reads the workers file again when it changes.
// Runs on a thread of its own.
#pragma once

#include <set>
#include <string>

#include "core/http/spawn.h"
#include "router/context.h"

namespace moectl::router {

class Prober {
 public:
  // Takes the workers from the options. Throws what reading the workers file throws.
  explicit Prober(RouterContext& context);
  void start();
  void stop();

 private:
  Task<void> supervise();
  Task<void> watch(int id, WorkerAddress address);
  void read_file_again();
  std::string file_stamp() const;

  RouterContext& context_;
  std::string stamp_;      // of the workers file as it was read last
  std::set<int> watched_;  // on the thread
  http::IoThread thread_;
};

}  // namespace moectl::router
