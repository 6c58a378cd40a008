// The dispatcher: which workers there are, how they are, who takes the next request, and who waits. All decisions of
// the router are made here, under one lock, from plain data and a time that is passed in; it knows no socket and has no
// thread. Any thread may call.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "router/policy.h"
#include "router/worker.h"

namespace moectl::router {

struct DispatcherOptions {
  std::string prefill_policy = "prefix-cache", decode_policy = "least-token";
  PolicyOptions policy;
  BreakerOptions breaker;
  size_t max_queue_size = 512;
  int max_requests_per_worker = 256;  // on one decode worker, from this router; more wait
};

// What routing needs to know of a request.
struct RouteRequest {
  std::string model;              // empty: whatever is served
  std::vector<BlockHash> prompt;  // prompt_blocks
  int64_t tokens = 0;             // estimate
  bool generates = true;          // else no prefill worker is needed
  std::set<int> tried;            // decode workers that failed it already
};

struct Assignment {
  int decode = 0, prefill = 0;  // ids; prefill is the first of the list, 0: none
  std::string decode_url;
  std::vector<std::string> prefill_endpoints, prefill_urls;
  std::vector<api::Candidate> decode_candidates, prefill_candidates;
  std::string why;
  int64_t tokens = 0;
};

enum class RefusalKind { kNoWorker, kQueueFull, kUnknownModel };
struct RouteRefusal {
  RefusalKind kind = RefusalKind::kNoWorker;
  std::string message;
};

using RouteResult = std::variant<Assignment, RouteRefusal>;
using Ticket = uint64_t;

// How a request on a worker ended.
enum class Outcome {
  kSuccess,  // the worker answered, be it with a refusal of the request
  kFailure,  // it broke, vanished, or answered with an internal error
  kNeutral,  // says nothing about the worker: the client left, it was busy
};

struct WorkerView {  // for GET /workers and metrics
  int id;
  WorkerAddress address;
  WorkerState state;
  std::string reason;
  bool breaker_open;
  int in_flight;
  double load_requests, load_tokens;
  api::LoadReport report;
};

class Dispatcher {
 public:
  explicit Dispatcher(DispatcherOptions options);

  // Workers that are new get an id; those no longer named take nothing more, what runs on them goes on.
  void set_workers(const std::vector<WorkerAddress>& addresses, TimePoint now);
  std::vector<std::pair<int, WorkerAddress>> workers() const;
  bool has_worker(int id) const;
  // Returns lines for the log: changes of state, pairs that do not fit.
  std::vector<std::string> on_probe(int id, const ProbeResult& probe, TimePoint now);

  // A decision at once, or a ticket: `decided` is then called exactly once, from whatever thread brings capacity,
  // unless withdraw() came before. It must not call back.
  std::variant<Assignment, RouteRefusal, Ticket> submit(RouteRequest request, std::function<void(RouteResult)> decided,
                                                        TimePoint now);
  // False: it was decided already.
  bool withdraw(Ticket ticket);
  // The prompt is computed: its prefill worker is free again. Once.
  void prefill_done(Assignment& assignment, TimePoint now);
  // The request has left the worker, which until its next probe is taken for unhealthy when `out_because` says why.
  void finished(Assignment& assignment, Outcome outcome, std::string_view out_because, TimePoint now);

  std::vector<WorkerView> view(TimePoint now) const;
  size_t num_waiting() const;
  int num_ready(Role role, TimePoint now) const;
  size_t state_bytes() const;

 private:
  struct Waiting {
    Ticket ticket;
    RouteRequest request;
    std::function<void(RouteResult)> decided;
  };
  // Assignment, refusal, or nothing: wait.
  std::variant<Assignment, RouteRefusal, std::monostate> pick(const RouteRequest& request, TimePoint now);
  Assignment assign(const RouteRequest& request, std::vector<Worker*> eligible, Assignment assignment, TimePoint now);
  void choose_prefill(const RouteRequest& request, const Worker& decode, Assignment& assignment, TimePoint now);
  void serve_waiting(TimePoint now);
  Worker* find(int id);
  std::string why_not(const Worker& worker, TimePoint now) const;
  void log_pairs(const Worker& changed, std::vector<std::string>& lines);

  mutable std::mutex mutex_;
  DispatcherOptions options_;
  std::unique_ptr<Policy> prefill_policy_, decode_policy_;
  std::list<Worker> workers_;
  int next_id_ = 1;
  std::list<Waiting> waiting_;  // in order of arrival
  Ticket next_ticket_ = 1;
  std::set<std::pair<int, int>> bad_pairs_;  // (prefill, decode), logged
};

}  // namespace moectl::router
