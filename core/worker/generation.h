// Chats and completions: the handlers that make the engine generate. A request is read, rendered and tokenised on the
// worker pool; its coroutine (I/O thread) then submits one engine request per choice, takes increments from a channel
// and writes a stream or, at the end, one response. When the client goes away its engine requests are cancelled.
#pragma once

#include "core/worker/instance.h"

namespace moectl {

http::Handler chat_handler(Instance& instance);
http::Handler completion_handler(Instance& instance);

// More engine requests than this waiting for the batch: new ones get 429.
inline constexpr int64_t kMaxWaitingRequests = 1024;
// A stream is never silent longer: a comment keeps proxies from closing it.
inline constexpr std::chrono::seconds kPingInterval{15};

}  // namespace moectl
