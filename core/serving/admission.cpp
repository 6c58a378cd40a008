#include "core/serving/admission.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"

namespace moectl {
namespace {

// Choices that wait for the batch, and what one client may have of them.
constexpr int64_t kMaxWaitingChoices = 2048;
constexpr int64_t kMaxWaitingChoicesPerClient = kMaxWaitingChoices / 2;
// Large jobs that wait for the CPU pool; the server's limit on the bytes of all bodies is met before it.
constexpr int64_t kMaxWaitingLargeJobs = 1024;
// Each waits in the engine's own queue, which is in order of arrival: as few as keep the batch full between two steps.
constexpr int64_t kLookaheadDivisor = 16;
// A client leaves an eighth of the places that others do not hold: another client's first choice is admitted at once,
// however long the answers are that fill the rest. Fewer than eight places are too few to leave one empty.
constexpr int64_t kReserveDivisor = 8;

}  // namespace

AdmissionLimits engine_admission(int max_num_seqs) {
  return {.num_places = max_num_seqs,
          .num_lookahead = std::max<int64_t>(1, max_num_seqs / kLookaheadDivisor),
          .max_waiting = kMaxWaitingChoices,
          .max_waiting_per_client = kMaxWaitingChoicesPerClient};
}

AdmissionLimits large_job_admission() {
  return {.num_places = 1,
          .num_lookahead = 0,
          .max_waiting = kMaxWaitingLargeJobs,
          .max_waiting_per_client = kMaxWaitingLargeJobs / 2};
}

// How many choices of the client can be admitted now.
int64_t Admission::room_for(const Client& client) const {
  const int64_t left_by_others = limits_.num_places - (num_admitted_ - client.num_admitted);
  const int64_t most = std::max<int64_t>(1, left_by_others - left_by_others / kReserveDivisor);
  const int64_t free = limits_.num_places + limits_.num_lookahead - num_admitted_;
  return std::clamp<int64_t>(most - client.num_admitted, 0, std::max<int64_t>(0, free));
}

void Admission::check_locked(const Client* known, int64_t num_choices) const {
  static const Client kNewClient;
  const Client& client = known ? *known : kNewClient;
  const int64_t num_must_wait = num_choices - (client.waiting.empty() ? room_for(client) : 0);
  if (num_must_wait <= 0) return;
  if (client.num_waiting + num_must_wait > limits_.max_waiting_per_client)
    throw Error(Code::kResourceExhausted,
                fmt::format("Too many of your requests are waiting ({} choices); try again when some have ended",
                            client.num_waiting));
  if (num_waiting_ + num_must_wait > limits_.max_waiting)
    throw Error(Code::kResourceExhausted, "Too many requests are waiting; try again later");
}

void Admission::check(const std::string& client, int64_t num_choices) const {
  std::lock_guard lock(mutex_);
  const auto found = clients_.find(client);
  check_locked(found == clients_.end() ? nullptr : &found->second, num_choices);
}

std::unique_ptr<Admission::Ticket> Admission::enter(const std::string& client, int64_t num_choices, int64_t num_tokens,
                                                    std::function<void()> on_admitted) {
  CHECK(num_choices > 0, "{} choices", num_choices);
  std::lock_guard lock(mutex_);
  const auto found = clients_.find(client);
  check_locked(found == clients_.end() ? nullptr : &found->second, num_choices);
  const auto entry = clients_.try_emplace(client).first;
  std::unique_ptr<Ticket> ticket(new Ticket(*this, entry));
  Client& c = entry->second;
  ++c.num_requests;
  ticket->num_waiting_ = num_choices;
  ticket->num_tokens_ = num_tokens / num_choices;
  c.num_waiting += num_choices;
  num_waiting_ += num_choices;
  num_tokens_waiting_ += num_choices * ticket->num_tokens_;
  if (c.waiting.empty()) turns_.push_back(&c);
  c.waiting.push_back(ticket.get());
  admit_locked();
  ticket->num_admitted_at_once_ = ticket->num_admitted_;
  ticket->on_admitted_ = std::move(on_admitted);
  return ticket;
}

// Gives what is free to those whose turn it is, one choice per turn.
void Admission::admit_locked() {
  while (num_admitted_ < limits_.num_places + limits_.num_lookahead) {
    const auto turn = std::find_if(turns_.begin(), turns_.end(), [this](Client* c) { return room_for(*c) > 0; });
    if (turn == turns_.end()) return;
    Client& client = **turn;
    Ticket& ticket = *client.waiting.front();
    ++ticket.num_admitted_, ++client.num_admitted, ++num_admitted_;
    --ticket.num_waiting_, --client.num_waiting, --num_waiting_;
    num_tokens_waiting_ -= ticket.num_tokens_;
    if (ticket.num_waiting_ == 0) client.waiting.pop_front();
    turns_.splice(turns_.end(), turns_, turn);
    if (client.waiting.empty()) turns_.pop_back();
    if (ticket.on_admitted_) ticket.on_admitted_();
  }
}

void Admission::Ticket::finish_one() {
  std::lock_guard lock(admission_.mutex_);
  CHECK(num_admitted_ > 0, "no choice is admitted");
  --num_admitted_, --client_->second.num_admitted, --admission_.num_admitted_;
  admission_.admit_locked();
}

Admission::Ticket::~Ticket() {
  Admission& a = admission_;
  std::lock_guard lock(a.mutex_);
  Client& client = client_->second;
  client.num_admitted -= num_admitted_;
  a.num_admitted_ -= num_admitted_;
  client.num_waiting -= num_waiting_;
  a.num_waiting_ -= num_waiting_;
  a.num_tokens_waiting_ -= num_waiting_ * num_tokens_;
  if (num_waiting_ > 0) client.waiting.remove(this);
  if (client.waiting.empty()) a.turns_.remove(&client);
  if (--client.num_requests == 0) a.clients_.erase(client_);
  a.admit_locked();
}

Admission::Stats Admission::stats() const {
  std::lock_guard lock(mutex_);
  return {num_admitted_, num_waiting_, num_tokens_waiting_, int64_t(clients_.size())};
}

}  // namespace moectl
