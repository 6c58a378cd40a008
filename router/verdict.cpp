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
            .retry_cause = "died"};
  // The router signs; a worker that does not accept the signature was not given the same secret or clock.
  if (error.param.starts_with(api::kClusterHeaderPrefix))
    return {.blame = Blame::kWorker,
            .retry = true,
            .out_because = "it does not accept this router's signature",
            .retry_cause = "misconfigured"};
  switch (error.status) {
    case 429:
    case 503:
      return {.retry = true, .retry_cause = "busy"};
    case 504:  // the request's own deadline
      return {.blame = Blame::kRequest};
    case 502:  // a gateway between this router and the worker
      return {.blame = Blame::kWorker, .retry = true, .retry_cause = "connect"};
    default:
      if (error.status < 500) return {.blame = Blame::kRequest};
      return {.blame = Blame::kUnproven, .retry = true, .retry_cause = "error"};
  }
}

}  // namespace

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
              .retry_cause = "connect"};
    case AttemptEnd::kBroken:
      return {.blame = Blame::kWorker,
              .retry = true,
              .worker_ended = true,
              .out_because = "it broke off an answer",
              .retry_cause = "died"};
    case AttemptEnd::kNonsense:
      return {.blame = Blame::kWorker, .retry = true, .retry_cause = "nonsense"};
    case AttemptEnd::kEjected:
      return {.blame = Blame::kWorker, .retry = true, .worker_ended = true, .retry_cause = "unhealthy"};
    case AttemptEnd::kOwnLimit:
      return {.blame = Blame::kRouter};
  }
  return {};
}

}  // namespace moectl::router
