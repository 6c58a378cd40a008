// Watches the workers: asks each for its load about once a second, and reads the workers file again when it changes.
// Runs on a thread of its own.
#pragma once

#include <map>
#include <mutex>
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
  // From any thread: the next probe of this worker comes now.
  void probe_now(int id);

 private:
  Task<void> supervise();
  Task<void> watch(int id, WorkerAddress address);
  bool is_new(int id);
  AsyncQueue<bool> begin_probe(int id);
  void read_file_again();
  std::string file_stamp() const;

  RouterContext& context_;
  std::string stamp_;  // of the workers file as it was read last
  std::mutex mutex_;
  struct Wake {
    AsyncQueue<bool> channel;
    bool pending = false;
  };
  std::map<int, Wake> watched_;  // by worker
  http::IoThread thread_;
};

}  // namespace moectl::router
