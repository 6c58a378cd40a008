// Chats and completions: the handlers that make the engine generate. A request is read, rendered and tokenised on the
// CPU pool; its coroutine (I/O thread) then submits one engine request per choice as they are admitted
// (core/serving/admission.h), takes increments from a channel and writes a stream or, at the end, one response. When
// the client goes away its engine requests are cancelled.
#pragma once

#include "core/serving/instance.h"

namespace moectl {

http::Handler chat_handler(Instance& instance);
http::Handler completion_handler(Instance& instance);

// A stream is never silent longer: a comment keeps proxies from closing it.
inline constexpr std::chrono::seconds kPingInterval{15};

}  // namespace moectl
