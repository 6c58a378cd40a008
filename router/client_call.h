// What the router reads of a client's request. The workers validate; the router only needs the model, whether the
// answer is a stream, and the bytes of the prompt. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/http/message.h"
#include "core/text/block_hash.h"

namespace moectl::router {

struct ClientCall {
  std::string model;
  bool stream = false;
  std::vector<BlockHash> prompt;
  int64_t tokens = 0;  // estimate: prompt and answer
};

// Throws Error{kInvalidArgument} for what is not one JSON object.
ClientCall read_call(std::string_view body);

// Throws Error{kInvalidArgument} for headers that only the router may send.
void check_client_headers(const http::Headers& headers);

// The request's own traceparent with a new span, or a new trace (W3C Trace Context).
std::string next_traceparent(std::string_view traceparent);

// A decoded path and a raw query as they stand in a URL.
std::string url_target(std::string_view path, std::string_view query);

}  // namespace moectl::router
