#include "router/dispatcher.h"

#include <algorithm>

#include "core/base/error.h"

namespace moectl::router {
namespace {

constexpr size_t kMaxPrefillWorkers = 3;

PolicyWorker for_policy(const Worker& worker) {
  return {worker.id, worker.load_requests(), worker.load_tokens()};
}

api::Candidate candidate(const Worker& worker, std::string why) {
  return {worker.address.url, worker.load_tokens(), 0, false, std::move(why)};
}

}  // namespace

Dispatcher::Dispatcher(DispatcherOptions options)
    : options_(std::move(options)),
      prefill_policy_(make_policy(options_.prefill_policy, options_.policy)),
      decode_policy_(make_policy(options_.decode_policy, options_.policy)) {}

// ------------------------------------------------------------------------------------------------ workers

Worker* Dispatcher::find(int id) {
  const auto it = std::find_if(workers_.begin(), workers_.end(), [&](const Worker& w) { return w.id == id; });
  return it == workers_.end() ? nullptr : &*it;
}

void Dispatcher::set_workers(const std::vector<WorkerAddress>& addresses, TimePoint now) {
  std::lock_guard lock(mutex_);
  const auto policy_of = [&](Role role) {
    return role == Role::kPrefill ? prefill_policy_.get() : decode_policy_.get();
  };
  std::erase_if(workers_, [&](const Worker& worker) {
    if (std::find(addresses.begin(), addresses.end(), worker.address) != addresses.end()) return false;
    policy_of(worker.address.role)->on_worker_removed(worker.id);
    std::erase_if(pair_notes_,
                  [&](const auto& note) { return note.first.first == worker.id || note.first.second == worker.id; });
    return true;
  });
  for (const WorkerAddress& address : addresses) {
    if (std::any_of(workers_.begin(), workers_.end(), [&](const Worker& w) { return w.address == address; })) continue;
    Worker& worker = workers_.emplace_back();
    worker.id = next_id_++;
    worker.address = address;
  }
  serve_waiting(now);
}

std::vector<std::pair<int, WorkerAddress>> Dispatcher::workers() const {
  std::lock_guard lock(mutex_);
  std::vector<std::pair<int, WorkerAddress>> result;
  for (const Worker& worker : workers_) result.emplace_back(worker.id, worker.address);
  return result;
}

bool Dispatcher::has_worker(int id) const {
  std::lock_guard lock(mutex_);
  return std::any_of(workers_.begin(), workers_.end(), [&](const Worker& w) { return w.id == id; });
}

std::vector<std::string> Dispatcher::on_probe(int id, const ProbeResult& probe, TimePoint now) {
  std::lock_guard lock(mutex_);
  std::vector<std::string> lines;
  Worker* worker = find(id);
  if (!worker) return lines;
  const WorkerState before = worker->state;
  const int epoch_before = worker->epoch;
  const std::string hash_before = worker->report.model_hash;
  apply_probe(*worker, probe);
  if (worker->state != before)
    lines.push_back(fmt::format("{} worker {} is {}{}", name_of(worker->address.role), worker->address.url,
                                name_of(worker->state), worker->reason.empty() ? "" : ": " + worker->reason));
  // A restarted process, or another model, under the old address: what was known of its cache is void.
  if (worker->epoch != epoch_before || (!hash_before.empty() && worker->report.model_hash != hash_before))
    (worker->address.role == Role::kPrefill ? prefill_policy_ : decode_policy_)->on_worker_removed(id);
  if (worker->state == WorkerState::kReady) log_pairs(*worker, lines);
  // A process whose engine failed, or that listens no more, ends its connections itself, and what it has sent before
  // says more than is known here.
  const bool ends_by_itself = probe.refused || (probe.ok && probe.report.state == "failed");
  if (worker->state == WorkerState::kUnhealthy && !ends_by_itself) tell_unhealthy(*worker);
  serve_waiting(now);
  return lines;
}

void Dispatcher::log_pairs(const Worker& changed, std::vector<std::string>& lines) {
  for (const Worker& other : workers_) {
    if (other.address.role == changed.address.role || other.state != WorkerState::kReady) continue;
    const Worker& prefill = changed.address.role == Role::kPrefill ? changed : other;
    const Worker& decode = changed.address.role == Role::kPrefill ? other : changed;
    const std::string problem = pair_problem(prefill, decode);
    std::string note;
    if (!problem.empty())
      note = fmt::format("prefill worker {} cannot serve decode worker {}: {}", prefill.address.url, decode.address.url,
                         problem);
    else if (!is_exact_pair(prefill, decode))
      note = fmt::format("prefill worker {} serves decode worker {}, but not to the bit: it computes as {}, not as {}",
                         prefill.address.url, decode.address.url, prefill.report.exactness, decode.report.exactness);
    std::string& logged = pair_notes_[{prefill.id, decode.id}];
    if (!note.empty() && note != logged) lines.push_back(note);
    logged = std::move(note);
  }
}

std::string Dispatcher::why_not(const Worker& worker, TimePoint now) const {
  if (worker.state != WorkerState::kReady) {
    const std::string state(name_of(worker.state));
    return worker.reason.empty() || worker.reason == state ? state : state + ": " + worker.reason;
  }
  if (!worker.breaker.allows(now, worker.in_flight)) return "circuit breaker open: too many requests failed on it";
  return "";
}

// ------------------------------------------------------------------------------------------------ routing

// Whether this ready worker must not get the request now, although it may later.
bool Dispatcher::is_full(const Worker& worker, const RouteRequest& request) const {
  if (worker.alone_lease != 0) return true;
  if (worker.in_flight == 0) return false;  // whatever the request's size
  if (request.alone) return true;
  const int most = options_.max_requests_per_worker;
  if (most <= 0) return false;
  // A client leaves an eighth of what the others leave: another one's first request finds room beside long answers.
  const auto own = worker.in_flight_of.find(request.client);
  const int of_client = own == worker.in_flight_of.end() ? 0 : own->second;
  const int left = most - (worker.in_flight - of_client);
  return of_client + request.choices > left - left / 8;
}

// Whether pick() would find nothing now but something later; without the reasons, which take time to write.
bool Dispatcher::must_wait(const RouteRequest& request, TimePoint now) const {
  bool any_full = false;
  for (const Worker& worker : workers_) {
    if (worker.address.role != Role::kDecode || worker.state != WorkerState::kReady) continue;
    if (!worker.breaker.allows(now, worker.in_flight) || request.tried.contains({worker.id, worker.epoch})) continue;
    if (!request.model.empty() && worker.report.model != request.model) continue;
    if (!is_full(worker, request)) return false;
    any_full = true;
  }
  return any_full;
}

std::variant<Assignment, RouteRefusal, std::monostate> Dispatcher::pick(const RouteRequest& request, TimePoint now) {
  Assignment assignment;
  std::vector<Worker*> eligible;
  bool any_full = false, any_of_model = false;
  std::string served;
  for (Worker& worker : workers_) {
    if (worker.address.role != Role::kDecode) continue;
    std::string problem = why_not(worker, now);
    if (problem.empty()) served = worker.report.model;
    if (problem.empty() && !request.model.empty() && worker.report.model != request.model) {
      problem = "serves another model";
    } else if (problem.empty()) {
      any_of_model = true;
      if (request.tried.contains({worker.id, worker.epoch})) {
        problem = "failed this request already";
      } else if (is_full(worker, request)) {
        problem = fmt::format("full: {} requests", worker.in_flight);
        if (worker.alone_lease != 0) problem = "kept for a request that workers ended with";
        if (request.alone) problem = "has other requests, and this one is tried alone";
        any_full = true;
      }
    }
    if (problem.empty()) eligible.push_back(&worker);
    assignment.decode_candidates.push_back(candidate(worker, std::move(problem)));
  }
  if (!eligible.empty()) return assign(request, std::move(eligible), std::move(assignment), now);
  if (any_full) return std::monostate{};
  if (!served.empty() && !any_of_model) return RouteRefusal{RefusalKind::kUnknownModel, served};
  std::string reasons;
  for (const api::Candidate& c : assignment.decode_candidates)
    reasons += fmt::format("{}{} is {}", reasons.empty() ? "" : "; ", c.worker, c.why);
  return RouteRefusal{RefusalKind::kNoWorker, reasons.empty() ? "no decode worker is configured" : reasons};
}

Assignment Dispatcher::assign(const RouteRequest& request, std::vector<Worker*> eligible, Assignment assignment,
                              TimePoint now) {
  std::vector<PolicyWorker> workers;
  for (const Worker* worker : eligible) workers.push_back(for_policy(*worker));
  const PolicyChoice choice = decode_policy_->choose(workers, request.prompt);
  Worker& decode = *eligible[choice.index];
  for (api::Candidate& c : assignment.decode_candidates) {
    const auto same = [&](const Worker* w) { return w->address.url == c.worker; };
    const auto it = std::find_if(eligible.begin(), eligible.end(), same);
    if (it == eligible.end()) continue;
    c.cached_blocks = decode_policy_->cached_blocks((*it)->id, request.prompt);
    c.chosen = *it == &decode;
    if (c.chosen) c.why = choice.why;
  }
  decode_policy_->on_routed(decode.id, request.prompt);
  assignment.lease = next_lease_++;
  assignment.decode = {decode.id, decode.epoch};
  assignment.decode_url = decode.address.url;
  assignment.tokens = request.tokens;
  assignment.choices = request.choices;
  assignment.pulse = decode.pulse;
  assignment.why = choice.why;
  assignment.client = request.client;
  decode.in_flight += request.choices;
  decode.in_flight_of[request.client] += request.choices;
  decode.tokens += request.tokens;
  if (request.alone) decode.alone_lease = assignment.lease;
  if (request.generates) choose_prefill(request, decode, assignment, now);
  return assignment;
}

void Dispatcher::choose_prefill(const RouteRequest& request, const Worker& decode, Assignment& assignment,
                                TimePoint now) {
  std::vector<Worker*> exact, others;  // others: when no exact one is left
  for (Worker& worker : workers_) {
    if (worker.address.role != Role::kPrefill) continue;
    std::string problem = why_not(worker, now);
    if (problem.empty()) problem = pair_problem(worker, decode);
    if (problem.empty()) (is_exact_pair(worker, decode) ? exact : others).push_back(&worker);
    assignment.prefill_candidates.push_back(candidate(worker, std::move(problem)));
    if (assignment.prefill_candidates.back().why.empty())
      assignment.prefill_candidates.back().cached_blocks = prefill_policy_->cached_blocks(worker.id, request.prompt);
  }
  while (assignment.prefill_endpoints.size() < kMaxPrefillWorkers) {
    std::vector<Worker*>& eligible = exact.empty() ? others : exact;
    if (eligible.empty()) break;
    std::vector<PolicyWorker> workers;
    for (const Worker* worker : eligible) workers.push_back(for_policy(*worker));
    const PolicyChoice choice = prefill_policy_->choose(workers, request.prompt);
    Worker& worker = *eligible[choice.index];
    const bool first = assignment.prefill_endpoints.empty();
    assignment.prefill_endpoints.push_back(worker.report.kv_endpoint);
    assignment.prefill_urls.push_back(worker.address.url);
    for (api::Candidate& c : assignment.prefill_candidates) {
      if (c.worker != worker.address.url) continue;
      c.chosen = first;
      c.why = first ? choice.why : fmt::format("number {} if others fail", assignment.prefill_endpoints.size());
      if (&eligible == &others) c.why += "; not exact to the bit with the decode worker";
    }
    if (first) {
      assignment.prefill = worker.id;
      worker.in_flight += request.choices;
      worker.tokens += request.tokens;
      prefill_policy_->on_routed(worker.id, request.prompt);
    }
    eligible.erase(eligible.begin() + ptrdiff_t(choice.index));
  }
}

std::variant<Assignment, RouteRefusal, Ticket> Dispatcher::submit(RouteRequest request,
                                                                  std::function<void(RouteResult)> decided,
                                                                  TimePoint now) {
  std::lock_guard lock(mutex_);
  // No request overtakes those of its client, but one that was admitted before and lost its worker. Of other clients
  // none waits that could go: what becomes free is given to them at once, in turns.
  const bool may_go = !request.tried.empty() || std::none_of(waiting_.begin(), waiting_.end(),
                                                             [&](const auto& w) { return w.client == request.client; });
  auto picked = may_go ? pick(request, now) : std::variant<Assignment, RouteRefusal, std::monostate>(std::monostate{});
  if (auto* assignment = std::get_if<Assignment>(&picked)) return std::move(*assignment);
  if (auto* refusal = std::get_if<RouteRefusal>(&picked)) return std::move(*refusal);
  if (!make_room(request))
    return RouteRefusal{RefusalKind::kQueueFull,
                        fmt::format("{} requests are waiting already; try again later", waiting_choices_)};
  const Ticket ticket = next_ticket_++;
  WaitingClient& client = waiting_of(request.client);
  client.choices += size_t(request.choices);
  waiting_choices_ += size_t(request.choices);
  client.requests.push_back({ticket, std::move(request), std::move(decided)});
  return ticket;
}

Dispatcher::WaitingClient& Dispatcher::waiting_of(const std::string& client) {
  const auto it = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& w) { return w.client == client; });
  if (it != waiting_.end()) return *it;
  waiting_.push_back({client, {}, 0});
  return waiting_.back();
}

bool Dispatcher::make_room(const RouteRequest& request) {
  const size_t choices = size_t(request.choices), most = size_t(options_.max_queue_size);
  if (most == 0) return false;
  if (waiting_.empty() || waiting_choices_ + choices <= most) return true;
  const auto own = std::find_if(waiting_.begin(), waiting_.end(),
                                [&](const WaitingClient& w) { return w.client == request.client; });
  const bool is_new = own == waiting_.end();
  // Within its share of the queue a client finds room: then another has more than its share, and gives way.
  const size_t share = most / (waiting_.size() + (is_new ? 1 : 0));
  if ((is_new ? 0 : own->choices) + choices > share) return false;
  while (waiting_choices_ + choices > most) {
    const auto largest = std::max_element(waiting_.begin(), waiting_.end(),
                                          [](const auto& a, const auto& b) { return a.choices < b.choices; });
    const Waiting& youngest = largest->requests.back();
    const size_t freed = size_t(youngest.request.choices);
    youngest.decided(RouteRefusal{RefusalKind::kQueueFull,
                                  "this client has most of the requests in it, and others wait too; try again later"});
    largest->choices -= freed;
    waiting_choices_ -= freed;
    largest->requests.pop_back();
    if (largest->requests.empty()) waiting_.erase(largest);
  }
  return true;
}

bool Dispatcher::withdraw(Ticket ticket) {
  std::lock_guard lock(mutex_);
  for (auto client = waiting_.begin(); client != waiting_.end(); ++client) {
    auto& requests = client->requests;
    const auto it =
        std::find_if(requests.begin(), requests.end(), [&](const Waiting& w) { return w.ticket == ticket; });
    if (it == requests.end()) continue;
    client->choices -= size_t(it->request.choices);
    waiting_choices_ -= size_t(it->request.choices);
    requests.erase(it);
    if (requests.empty()) waiting_.erase(client);
    return true;
  }
  return false;
}

// The oldest request of the client whose turn it is goes next. One that needs more room than there is holds up no
// other.
void Dispatcher::serve_waiting(TimePoint now) {
  for (auto client = waiting_.begin(); client != waiting_.end();) {
    auto& requests = client->requests;
    if (must_wait(requests.front().request, now)) {
      ++client;
      continue;
    }
    auto picked = pick(requests.front().request, now);
    const Waiting next = std::move(requests.front());
    requests.pop_front();
    client->choices -= size_t(next.request.choices);
    waiting_choices_ -= size_t(next.request.choices);
    const auto served = client++;
    if (requests.empty()) {
      waiting_.erase(served);
    } else {
      waiting_.splice(waiting_.end(), waiting_, served);
      if (client == waiting_.end()) client = served;
    }
    if (auto* assignment = std::get_if<Assignment>(&picked)) {
      next.decided(std::move(*assignment));
    } else {
      next.decided(std::get<RouteRefusal>(std::move(picked)));
    }
  }
}

// ------------------------------------------------------------------------------------------------ leases

void Dispatcher::watch(const Assignment& assignment, std::function<void(const std::string& reason)> unhealthy) {
  std::lock_guard lock(mutex_);
  const Worker* worker = find(assignment.decode.id);
  if (worker && worker->state == WorkerState::kUnhealthy) unhealthy(worker->reason);
  watched_[assignment.lease] = {assignment.decode.id, std::move(unhealthy)};
}

void Dispatcher::tell_unhealthy(const Worker& worker) {
  for (const auto& [lease, watched] : watched_)
    if (watched.worker == worker.id) watched.unhealthy(worker.reason);
}

void Dispatcher::release_prefill(Assignment& assignment) {
  if (Worker* worker = find(std::exchange(assignment.prefill, 0))) {
    worker->in_flight -= assignment.choices;
    worker->tokens -= assignment.tokens;
  }
}

void Dispatcher::first_text(Assignment& assignment, TimePoint now) {
  std::lock_guard lock(mutex_);
  release_prefill(assignment);
  Worker* decode = find(assignment.decode.id);
  if (!decode || decode->alone_lease != assignment.lease) return;
  decode->alone_lease = 0;
  serve_waiting(now);
}

bool Dispatcher::finished(Assignment& assignment, Outcome outcome, std::string_view out_because, TimePoint now) {
  std::lock_guard lock(mutex_);
  release_prefill(assignment);
  watched_.erase(assignment.lease);
  const WorkerLife life = std::exchange(assignment.decode, {});
  Worker* decode = find(life.id);
  if (!decode) return false;
  const bool alone = life.epoch == decode->epoch && decode->in_flight == assignment.choices;
  decode->in_flight -= assignment.choices;
  if ((decode->in_flight_of[assignment.client] -= assignment.choices) == 0)
    decode->in_flight_of.erase(assignment.client);
  decode->tokens -= assignment.tokens;
  if (decode->alone_lease == assignment.lease) decode->alone_lease = 0;
  if (life.epoch == decode->epoch) {  // else it says something about a process that is gone
    if (outcome == Outcome::kSuccess) decode->breaker.on_success(options_.breaker);
    if (outcome == Outcome::kFailure || outcome == Outcome::kEnded) decode->breaker.on_failure(options_.breaker, now);
    if (outcome == Outcome::kEnded) ++decode->epoch;  // its other requests will say the same
    if (!out_because.empty()) {                       // until the next probe
      decode->state = WorkerState::kUnhealthy;
      decode->reason = out_because;
    }
  }
  serve_waiting(now);
  return alone;
}

void Dispatcher::charge(const WorkerLife& worker, TimePoint now) {
  std::lock_guard lock(mutex_);
  Worker* found = find(worker.id);
  if (found && found->epoch == worker.epoch) found->breaker.on_failure(options_.breaker, now);
}

// ------------------------------------------------------------------------------------------------ views

std::vector<WorkerView> Dispatcher::view(TimePoint) const {
  std::lock_guard lock(mutex_);
  std::vector<WorkerView> result;
  for (const Worker& w : workers_)
    result.push_back({w.id, w.address, w.state, w.reason, w.breaker.is_open(), w.in_flight, w.load_requests(),
                      w.load_tokens(), w.report});
  return result;
}

size_t Dispatcher::num_waiting() const {
  std::lock_guard lock(mutex_);
  size_t count = 0;
  for (const WaitingClient& client : waiting_) count += client.requests.size();
  return count;
}

int Dispatcher::num_ready(Role role, TimePoint now) const {
  std::lock_guard lock(mutex_);
  // A half-open breaker that is trying one request counts as ready.
  return int(std::count_if(workers_.begin(), workers_.end(), [&](const Worker& w) {
    return w.address.role == role && w.state == WorkerState::kReady && w.breaker.allows(now, 0);
  }));
}

size_t Dispatcher::state_bytes() const {
  std::lock_guard lock(mutex_);
  return prefill_policy_->state_bytes() + decode_policy_->state_bytes();
}

}  // namespace moectl::router
