// Why a request of the client got no whole answer.
#pragma once

#include <string>
#include <utility>

#include "core/base/error.h"

namespace moectl::http {

enum class ClientFailure {
  kRefused,       // no process listens there
  kNoConnection,  // another reason why there is none: unknown host, no answer in time, TLS
  kTimeout,       // connected; the head, or the next piece of the body, did not come in time
  kBroken,        // the connection ended before the answer did
  kNotHttp,       // the answer is not HTTP
};

// The peer's failures. Those of this process (no file descriptor) and cancellation are plain errors of another code.
class ClientError : public Error {
 public:
  ClientError(ClientFailure failure, std::string message)
      : Error(Code::kUnavailable, std::move(message)), failure_(failure) {}
  ClientFailure failure() const { return failure_; }
  bool connected() const { return failure_ != ClientFailure::kRefused && failure_ != ClientFailure::kNoConnection; }

 private:
  ClientFailure failure_;
};

}  // namespace moectl::http
