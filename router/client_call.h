// What the router reads of a client's request: the one interface to its body. The workers validate; the router needs
// the model, whether the answer is a stream, how much is asked for, and the bytes of the prompt. Pure; takes time that
// grows with the body (read_body_inline says where it may run).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/cluster.h"
#include "core/http/message.h"
#include "core/text/block_hash.h"

namespace moectl::router {

struct ClientCall {
  std::string model;
  bool stream = false;
  std::vector<BlockHash> prompt;
  int64_t tokens = 0;  // estimate: prompts and answers
  int choices = 1;     // n x prompts
};

struct ClientBody {
  ClientCall call;
  BlockHash key;           // Quarantine::key_of
  api::BodyDigest digest;  // for the signature
};

// Throws Error{kInvalidArgument} for what is not one JSON object.
ClientCall read_call(std::string_view body);
ClientBody read_body(std::string_view body);

// Whether a body may be read on an I/O thread: longer ones would hold up the other requests there.
inline bool read_body_inline(size_t num_bytes) {
  return num_bytes <= 16 << 10;
}

// Throws Error{kInvalidArgument} for headers that only the router may send.
void check_client_headers(const http::Headers& headers);

// Who asks, for fair queues here and in workers: by the API key when there is one, else by the connection. 16 hex
// digits that say nothing else.
std::string client_id(std::string_view api_key, std::string_view peer);

// The request's own traceparent with a new span, or a new trace (W3C Trace Context).
std::string next_traceparent(std::string_view traceparent);

// A decoded path and a raw query as they stand in a URL.
std::string url_target(std::string_view path, std::string_view query);

}  // namespace moectl::router
