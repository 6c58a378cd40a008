// Whether an instance of a deployment can do its work, as it reports itself: GET /load of a worker
// (core/serving/health.h), GET /health of a router, on the operations port. `deploy status` asks once; the supervisor
// asks each second, on a thread of its own, because its main thread must be the one that forks.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/http/client.h"
#include "core/http/spawn.h"

namespace moectl {

inline constexpr std::chrono::milliseconds kProbeInterval{1000};
inline constexpr std::chrono::milliseconds kProbeTimeout{2000};  // connect, answer, each piece of the body

struct InstanceHealth {
  std::string state;   // ready | draining | unhealthy
  std::string reason;  // why it is unhealthy, for people: "no answer"
  std::string load;    // the body of GET /load; empty: none

  bool healthy() const { return state != "unhealthy"; }
};
// `role`: router, prefill or decode; `ops`: the URL of its operations port. Does not throw.
Task<InstanceHealth> ask_instance(http::Client& client, std::string role, std::string ops);

// The body of the answer 200 to a GET; empty when there is none in time.
Task<std::string> get_text(http::Client& client, std::string url);

// Probes the instances of a supervisor. The results are handed over through a file descriptor that it polls.
class InstanceProber {
 public:
  struct Result {
    int instance;  // index
    InstanceHealth health;
  };

  InstanceProber();  // the thread inherits the signal mask
  ~InstanceProber();
  InstanceProber(const InstanceProber&) = delete;

  // From now on. Results of the process that had this index before are dropped.
  void watch(int instance, std::string role, std::string ops);
  void forget(int instance);
  int fd() const { return fd_; }  // readable when take() has something
  std::vector<Result> take();

 private:
  struct Target {
    std::string role, ops;
    int life;  // counts the processes of all instances
  };
  Task<void> run();
  Task<void> probe(http::Client& client, int instance, Target target);

  const int fd_;
  std::mutex mutex_;  // of what follows
  std::map<int, Target> targets_;
  std::vector<std::pair<int, Result>> results_;  // life of the process, result
  int num_lives_ = 0;
  http::IoThread thread_;  // last: it uses the others
};

}  // namespace moectl
