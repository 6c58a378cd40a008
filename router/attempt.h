// One attempt of one request on the worker that it was assigned to: send, judge what comes, pass the answer on. A
// coroutine of the data server's.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/http/client.h"
#include "router/flight.h"
#include "router/verdict.h"

namespace moectl::router {

enum class Forwarding {
  kGenerate,  // a JSON body; signed headers go along, with the prefill workers
  kBody,      // a JSON body
  kPlain,     // no body
};

// The client may leave at any time: this cancels the wait for a queue decision or for the worker.
struct Departure {
  bool gone = false;
  std::shared_ptr<http::Cancellation> sending;
  AsyncQueue<std::optional<RouteResult>>* queued = nullptr;

  void leave() {
    gone = true;
    if (sending) sending->cancel();
    if (queued) queued->push(std::nullopt);
  }
};

// What the client has got of its answer so far; outlives an attempt that failed before the first text.
struct AnswerProgress {
  bool started = false;     // the head is with the client
  bool has_text = false;    // and part of the answer: no other worker can begin anew
  bool amid_event = false;  // and part of an event
};

struct AttemptOutcome {
  bool answered = false;  // the client has its answer, whole
  Verdict verdict;
  std::string message;      // for the log; empty when answered
  http::Response response;  // what the client gets when no other worker can do it
};

// Releases the workers of flight.assignment, whatever happens. Throws Error{kCancelled} when the client has left.
Task<AttemptOutcome> attempt(Flight& flight, http::Exchange& exchange, Forwarding forwarding,
                             std::shared_ptr<Departure> departure, AnswerProgress& progress);

// Ends a stream or an answer that cannot be completed: an error event where one can be read, and a close. Never a clean
// end.
Task<void> break_off(Flight& flight, http::Exchange& exchange, const AnswerProgress& progress, std::string error_object,
                     std::string message);

Task<void> answer(Flight& flight, http::Exchange& exchange, http::Response response, RequestOutcome outcome);
RequestOutcome outcome_of(int status);
[[noreturn]] void throw_departed();

}  // namespace moectl::router
