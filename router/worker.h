// What the router knows of one worker, and the circuit breaker that keeps requests away from one that fails. Plain data
// and pure functions; time is passed in.
#pragma once

#include <atomic>
#include <chrono>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "core/api/cluster.h"
#include "core/base/role.h"
#include "router/options.h"

namespace moectl::router {

using TimePoint = std::chrono::steady_clock::time_point;

enum class WorkerState { kUnknown, kReady, kDraining, kUnhealthy };
std::string_view name_of(WorkerState state);

struct WorkerAddress {
  Role role = Role::kDecode;
  std::string url;  // "http://host:port", without a slash at its end
  friend bool operator==(const WorkerAddress&, const WorkerAddress&) = default;
};

// One life of a worker's process: Worker::id and epoch.
struct WorkerLife {
  int id = 0, epoch = 0;
  friend auto operator<=>(const WorkerLife&, const WorkerLife&) = default;
};

// Closed: requests pass. Open: none for `timeout`. Then half open: one at a time, until enough succeeded or one failed.
class Breaker {
 public:
  bool allows(TimePoint now, int in_flight) const;
  void on_success(const BreakerOptions& options);
  void on_failure(const BreakerOptions& options, TimePoint now);
  bool is_open() const { return open_; }

 private:
  bool open_ = false;
  TimePoint open_until_;
  int failures_ = 0, successes_ = 0;  // in a row
};

// When bytes last came from a worker, written by the attempts that get them: as good as an answered probe.
struct Pulse {
  std::atomic<TimePoint::rep> last_bytes{0};
};

struct Worker {
  int id = 0;     // never reused
  int epoch = 1;  // counts the lives of its process: one more when it ended, or was found restarted
  WorkerAddress address;
  WorkerState state = WorkerState::kUnknown;
  std::string reason = "not probed yet";  // why it is not ready
  api::LoadReport report;                 // the last one
  int failed_probes = 0;                  // in a row
  Breaker breaker;
  std::shared_ptr<Pulse> pulse = std::make_shared<Pulse>();
  // What this router has on it now, and had when the last report came: reports are a second old. Choices, as the worker
  // counts them: a request with n 16 is 16.
  int in_flight = 0, in_flight_at_report = 0;
  std::map<std::string, int> in_flight_of;  // the same, by client
  uint64_t alone_lease = 0;                 // of a request that must not have neighbors; 0: none
  int64_t tokens = 0, tokens_at_report = 0;

  // Requests and tokens on the worker now, this router's own and others': the last report, corrected by what this
  // router has sent and seen end since.
  double load_requests() const;
  double load_tokens() const;
};

struct ProbeResult {
  bool ok = false;
  api::LoadReport report;  // when ok
  bool refused = false;    // nothing listens there: believed at once
  std::string error;       // when not ok
  TimePoint started;       // when it was asked
};
// The new state of the worker. A single probe without an answer is forgiven, and so is any while answers keep coming.
void apply_probe(Worker& worker, const ProbeResult& probe);

// Why this prefill worker cannot serve this decode worker; empty: it can. Both have reported.
std::string pair_problem(const Worker& prefill, const Worker& decode);
// Whether an answer is the same to the bit, whichever of the two computes the prompt.
bool is_exact_pair(const Worker& prefill, const Worker& decode);

}  // namespace moectl::router
