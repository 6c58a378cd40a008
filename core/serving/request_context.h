// What a generation request carries besides its body: the client, how long it may take, which prefill workers may help.
// Headers of the router count only when they are signed (core/api/cluster.h). Pure; runs on the CPU pool, because a
// signature covers the body.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/http/async.h"
#include "core/http/message.h"

namespace moectl {

struct RequestContext {
  std::string id;                            // the router's when it sent one, else the HTTP server's
  std::string trace_id;                      // of `traceparent`, 32 hex digits; empty: none
  bool from_router = false;                  // token ids and sampler positions go along with the stream
  bool debug = false;                        // the answer ends with a timeline
  int attempt = 1;                           // of the router's
  std::vector<std::string> prefill_workers;  // KV endpoints, best first
  std::optional<Clock::time_point> deadline;
  std::string client;  // who asks, for fair turns: never empty, never a key itself

  bool deadline_passed(Clock::time_point now) const { return deadline && *deadline <= now; }
};

struct Now {
  Clock::time_point steady;
  int64_t unix_ms = 0;
};
Now read_clocks();

// `secret` is the cluster's; empty: no router is trusted. `has_api_keys`: the server asks for keys and has checked this
// request's. Throws Error{kInvalidArgument} naming the header.
RequestContext read_context(const http::Request& request, std::string_view secret, const Now& now,
                            bool has_api_keys = false);

// Who asks, where no router says it: the API key's digest when the server asks for keys, else the connection. Without
// keys a client that opens many connections therefore counts as many.
std::string client_of(const http::Request& request, bool has_api_keys);

// The trace id of a W3C traceparent; empty when it is not one.
std::string trace_id_of(std::string_view traceparent);

}  // namespace moectl
