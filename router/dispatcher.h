// The dispatcher: which workers there are, how they are, who takes the next request, and who waits. All decisions of
// the router are made here, under one lock, from plain data and a time that is passed in; it knows no socket and has no
// thread. Any thread may call.
#pragma once

#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "router/options.h"
#include "router/policy.h"
#include "router/worker.h"

namespace moectl::router {

// What routing needs to know of a request.
struct RouteRequest {
  std::string model;              // empty: whatever is served
  std::vector<BlockHash> prompt;  // prompt_blocks
  int64_t tokens = 0;             // estimate
  bool generates = true;          // else no prefill worker is needed
  int choices = 1;                // that it asks for
  std::string client;             // who asks; those who wait take turns
  bool alone = false;             // on a worker that has nothing else, and gets nothing else before the first text
  std::set<WorkerLife> tried;     // decode workers that failed it already
};

struct Assignment {
  uint64_t lease = 0;
  WorkerLife decode;
  int prefill = 0;  // id of the first of the list; 0: none
  std::string decode_url;
  std::vector<std::string> prefill_endpoints, prefill_urls;
  std::vector<api::Candidate> decode_candidates, prefill_candidates;
  std::string why;
  int64_t tokens = 0;
  int choices = 1;
  std::string client;
  std::shared_ptr<Pulse> pulse;  // of the decode worker
};

enum class RefusalKind { kNoWorker, kQueueFull, kUnknownModel };
struct RouteRefusal {
  RefusalKind kind = RefusalKind::kNoWorker;
  std::string message;
};

using RouteResult = std::variant<Assignment, RouteRefusal>;
using Ticket = uint64_t;

// What the end of a request says about its worker.
enum class Outcome {
  kSuccess,  // it answered, be it with a refusal of the request
  kFailure,  // it failed this request and keeps running
  kEnded,    // it ended; all requests that it had say so, and count once
  kNeutral,  // nothing: the client left, it was busy
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

  // Workers that are new get an id; those no longer named take nothing more; requests that run on them finish.
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
  // `unhealthy` is called with the reason when the decode worker of this lease turns out to be unhealthy, now or later,
  // until finished(). From any thread, under the dispatcher's lock: it must not call back.
  void watch(const Assignment& assignment, std::function<void(const std::string& reason)> unhealthy);
  // The first text has come: the prefill worker is free again, and the decode worker takes others next to a request
  // that had to be alone. Once.
  void first_text(Assignment& assignment, TimePoint now);
  // The request has left the worker, which until its next probe is taken for unhealthy when `out_because` says why.
  // Returns whether the worker had no other request of this router.
  bool finished(Assignment& assignment, Outcome outcome, std::string_view out_because, TimePoint now);
  // A failure whose blame was open until now.
  void charge(const WorkerLife& worker, TimePoint now);

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
  // Those who wait, by client, oldest first. Clients take turns.
  struct WaitingClient {
    std::string client;
    std::deque<Waiting> requests;
    size_t choices = 0;
  };
  // Assignment, refusal, or nothing: wait.
  std::variant<Assignment, RouteRefusal, std::monostate> pick(const RouteRequest& request, TimePoint now);
  Assignment assign(const RouteRequest& request, std::vector<Worker*> eligible, Assignment assignment, TimePoint now);
  void choose_prefill(const RouteRequest& request, const Worker& decode, Assignment& assignment, TimePoint now);
  bool is_full(const Worker& worker, const RouteRequest& request) const;
  bool must_wait(const RouteRequest& request, TimePoint now) const;
  void serve_waiting(TimePoint now);
  WaitingClient& waiting_of(const std::string& client);
  // Room for `request` in the queue, if need be by refusing the youngest requests of the client that has most in it.
  bool make_room(const RouteRequest& request);
  void release_prefill(Assignment& assignment);
  void tell_unhealthy(const Worker& worker);
  Worker* find(int id);
  std::string why_not(const Worker& worker, TimePoint now) const;
  void log_pairs(const Worker& changed, std::vector<std::string>& lines);

  mutable std::mutex mutex_;
  DispatcherOptions options_;
  std::unique_ptr<Policy> prefill_policy_, decode_policy_;
  std::list<Worker> workers_;
  int next_id_ = 1;
  std::list<WaitingClient> waiting_;  // whose turn it is first; none is empty
  size_t waiting_choices_ = 0;
  Ticket next_ticket_ = 1;
  uint64_t next_lease_ = 1;
  struct Watched {
    int worker = 0;
    std::function<void(const std::string&)> unhealthy;
  };
  std::unordered_map<uint64_t, Watched> watched_;          // by lease
  std::map<std::pair<int, int>, std::string> pair_notes_;  // (prefill, decode): what was logged of them
};

}  // namespace moectl::router
