// on_ranks: runs a body on one thread per rank of a group and passes on the first exception.
#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "core/comm/communicator.h"

namespace moectl::test {

inline void on_ranks(const std::vector<std::unique_ptr<Communicator>>& comms,
                     const std::function<void(Communicator&)>& body) {
  std::vector<std::thread> threads;
  std::exception_ptr error;
  std::mutex mutex;
  for (auto& comm : comms)
    threads.emplace_back([&] {
      try {
        body(*comm);
      } catch (const std::exception& e) {
        {
          std::lock_guard lock(mutex);
          if (!error) error = std::current_exception();
        }
        comm->abort(e.what());
      }
    });
  for (auto& t : threads) t.join();
  if (error) std::rethrow_exception(error);
}

inline void on_ranks(int size, const std::function<void(Communicator&)>& body, LocalGroupOptions options = {}) {
  on_ranks(make_local_communicators(size, options), body);
}

}  // namespace moectl::test
