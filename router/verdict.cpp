#include "router/verdict.h"

#include "core/api/cluster.h"

namespace moectl::router {
namespace {

Verdict judge_error(const api::ApiError& error) {
  if (error.code == api::kEngineFailed)
    return {.blame = Blame::kWorker,
            .retry = true,
            .worker_ended = true,
            .out_because = "its engine failed",
            .retry_cause = RetryCause::kDied};
  // The router signs; a worker that does not accept the signature was not given the same secret or clock.
  if (error.param.starts_with(api::kClusterHeaderPrefix))
    return {.blame = Blame::kWorker,
            .retry = true,
            .out_because = "it does not accept this router's signature",
            .retry_cause = RetryCause::kMisconfigured};
  switch (error.status) {
    case 429:
    case 503:
      return {.retry = true, .retry_cause = RetryCause::kBusy};
    case 504:  // the request's own deadline
      return {.blame = Blame::kRequest};
    case 502:  // a gateway between this router and the worker
      return {.blame = Blame::kWorker, .retry = true, .retry_cause = RetryCause::kConnect};
    default:
      if (error.status < 500) return {.blame = Blame::kRequest};
      return {.blame = Blame::kUnproven, .retry = true, .retry_cause = RetryCause::kError};
  }
}

}  // namespace

const char* name_of(RetryCause cause) {
  switch (cause) {
    case RetryCause::kNone:
      return "";
    case RetryCause::kConnect:
      return "connect";
    case RetryCause::kDied:
      return "died";
    case RetryCause::kBusy:
      return "busy";
    case RetryCause::kError:
      return "error";
    case RetryCause::kMisconfigured:
      return "misconfigured";
    case RetryCause::kNonsense:
      return "nonsense";
    case RetryCause::kUnhealthy:
      return "unhealthy";
  }
  return "";
}

Verdict judge(const AttemptResult& result) {
  switch (result.end) {
    case AttemptEnd::kDone:
      return {};
    case AttemptEnd::kErrorAnswer:
      return judge_error(result.error);
    case AttemptEnd::kUnreachable:
      return {.blame = Blame::kWorker,
              .retry = true,
              .out_because = result.refused ? "connection refused" : "no connection",
              .retry_cause = RetryCause::kConnect};
    case AttemptEnd::kBroken:
      return {.blame = Blame::kWorker,
              .retry = true,
              .worker_ended = true,
              .out_because = "it broke off an answer",
              .retry_cause = RetryCause::kDied};
    case AttemptEnd::kNonsense:
      return {.blame = Blame::kWorker, .retry = true, .retry_cause = RetryCause::kNonsense};
    case AttemptEnd::kEjected:
      return {.blame = Blame::kWorker, .retry = true, .worker_ended = true, .retry_cause = RetryCause::kUnhealthy};
    case AttemptEnd::kOwnLimit:
      return {.blame = Blame::kRouter};
  }
  return {};
}

}  // namespace moectl::router
