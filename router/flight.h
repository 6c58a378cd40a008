// The state of one client request in the router, and what is reported at its end: one line in the log, one count in
// the metrics, the timeline for a client that asked. Lives in the coroutine of the request.
#pragma once

#include <string>
#include <vector>

#include "core/http/async.h"
#include "router/client_call.h"
#include "router/context.h"

namespace moectl::router {

struct Flight {
  Flight(RouterContext& context, const http::Request& request, std::string path);
  ~Flight();  // counts and logs
  Flight(const Flight&) = delete;

  void stage(std::string name, TimePoint start, TimePoint end, std::string detail = {});
  // The router's timeline with the worker's inside.
  std::string timeline(const std::string& inner) const;

  RouterContext& context;
  const http::Request& request;
  std::string path;
  TimePoint start = Clock::now();
  ClientBody body;
  std::string client;  // client_id()
  std::string traceparent;
  bool debug = false;

  int attempt = 0;
  Assignment assignment;    // the last one; its leases may be over
  TimePoint first_event{};  // of the answer; zero: none yet
  double queue_seconds = 0, overhead_seconds = 0;
  std::vector<api::Stage> stages;

  int status = 0;
  RequestOutcome outcome = RequestOutcome::kCancelled;
  std::string problem;  // for the log
};

}  // namespace moectl::router
