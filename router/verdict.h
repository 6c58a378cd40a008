// Attribution: whose fault the end of an attempt is, and what follows from it. The one place where that is decided;
// docs/faults.md has the table. Pure.
//
// A worker is blamed for what only a worker can do: being unreachable, breaking off, answering nonsense. A request is
// blamed for what a worker refuses with an error of the request. A single internal error proves nothing: the request is
// tried on a second worker, and whichever of the two shows the error again is to blame (Blame::kUnproven).
#pragma once

#include <string_view>

#include "core/api/errors.h"

namespace moectl::router {

enum class AttemptEnd {
  kDone,         // a whole, checked answer, or a stream up to its [DONE]
  kErrorAnswer,  // the worker's error object, as an answer or as an event of a stream
  kUnreachable,  // no connection
  kBroken,       // the connection ended, or was silent too long, before the answer did
  kNonsense,     // not an answer: not HTTP, not JSON, an event without an end
  kEjected,      // the prober found the worker unhealthy while the attempt waited for it
  kOwnLimit,     // a limit of this router: no file descriptor
};

struct AttemptResult {
  AttemptEnd end = AttemptEnd::kDone;
  api::ApiError error;   // kErrorAnswer; its status is the answer's
  bool refused = false;  // kUnreachable: nothing listens there
};

// Why a request goes to another worker: the label of moectl_router_retries_total.
enum class RetryCause { kNone, kConnect, kDied, kBusy, kError, kMisconfigured, kNonsense, kUnhealthy };
inline constexpr RetryCause kRetryCauses[] = {RetryCause::kConnect,  RetryCause::kDied,          RetryCause::kBusy,
                                              RetryCause::kError,    RetryCause::kMisconfigured, RetryCause::kNonsense,
                                              RetryCause::kUnhealthy};
const char* name_of(RetryCause cause);

enum class Blame { kNobody, kRequest, kWorker, kUnproven, kRouter };

struct Verdict {
  Blame blame = Blame::kNobody;
  bool retry = false;            // on another worker, while the client has no text of the answer
  bool worker_ended = false;     // the worker, or its engine, ended while it had the request
  std::string_view out_because;  // the worker takes nothing until its next probe; empty: it stays in use
  RetryCause retry_cause = RetryCause::kNone;
};

Verdict judge(const AttemptResult& result);

}  // namespace moectl::router
