// Admission: who may use a resource of bounded size next: clients take turns, requests of one client are served in the
// order of their arrival. A request asks for one place per choice (prompts x n) and is admitted choice by choice. Two
// of them are in use: in front of the engine, so that one request or client cannot fill the batch and its queue, and in
// front of the CPU pool's large jobs (prepare.h). Any thread; it knows neither the engine nor HTTP.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace moectl {

struct AdmissionLimits {
  int64_t num_places = 1;     // that are worth having at a time: sequences of the batch
  int64_t num_lookahead = 0;  // admitted ahead of need, so that a place that becomes free is filled at once
  int64_t max_waiting = 0;    // choices not admitted yet, of all clients
  int64_t max_waiting_per_client = 0;
};

// In front of an engine that runs so many sequences at a time.
AdmissionLimits engine_admission(int max_num_seqs);

// In front of the CPU pool's large jobs: one at a time.
AdmissionLimits large_job_admission();

class Admission {
  struct Client;

 public:
  explicit Admission(AdmissionLimits limits) : limits_(limits) {}
  void set_limits(AdmissionLimits limits) { limits_ = limits; }  // before the first request

  // One request's choices, admitted and waiting. Its end gives all of them back.
  class Ticket {
   public:
    ~Ticket();
    Ticket(const Ticket&) = delete;
    // Choices that were admitted by enter() itself, without on_admitted.
    int64_t num_admitted_at_once() const { return num_admitted_at_once_; }
    // An admitted choice has ended.
    void finish_one();

   private:
    friend class Admission;
    using ClientEntry = std::map<std::string, Client>::iterator;
    Ticket(Admission& admission, ClientEntry client) : admission_(admission), client_(client) {}
    Admission& admission_;
    const ClientEntry client_;
    int64_t num_admitted_at_once_ = 0, num_admitted_ = 0, num_waiting_ = 0;
    int64_t num_tokens_ = 0;  // of one choice
    std::function<void()> on_admitted_;
  };

  // Throws Error{kResourceExhausted} when so many choices of the client cannot wait now.
  void check(const std::string& client, int64_t num_choices) const;
  // As check(); then the choices wait for their turns. `on_admitted` is called for each that is admitted later, from
  // any thread and under a lock: it must only enqueue. `num_tokens`: of the prompts of all choices, for stats().
  std::unique_ptr<Ticket> enter(const std::string& client, int64_t num_choices, int64_t num_tokens,
                                std::function<void()> on_admitted);

  struct Stats {
    int64_t num_admitted = 0, num_waiting = 0;  // choices
    int64_t num_tokens_waiting = 0;             // prompt tokens of the waiting ones
    int64_t num_clients = 0;
  };
  Stats stats() const;

 private:
  struct Client {
    int64_t num_requests = 0, num_admitted = 0, num_waiting = 0;
    std::list<Ticket*> waiting;  // those with choices that wait, oldest first
  };

  int64_t room_for(const Client& client) const;
  void check_locked(const Client* known, int64_t num_choices) const;  // null: a new one
  void admit_locked();

  mutable std::mutex mutex_;
  AdmissionLimits limits_;
  int64_t num_admitted_ = 0, num_waiting_ = 0, num_tokens_waiting_ = 0;
  std::map<std::string, Client> clients_;  // those with a request
  std::list<Client*> turns_;               // clients with waiting choices; the first is next
};

}  // namespace moectl
