// HTTP client for the router, the tools and tests: coroutines, keep-alive pool, streamed bodies, deadlines on every
// wait. One object a process (or a tool); used from coroutines of any executor that runs one at a time (a strand, one
// thread). Nothing from outside can make it allocate without bound. Connections over TLS are not kept for reuse.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/http/async.h"
#include "core/http/client_error.h"
#include "core/http/message.h"

namespace moectl::http {

// Ends what is under way: a send() that was given it throws Error{kCancelled}, and so does a pending read() of the
// response. Used on the executor that sends.
class Cancellation {
 public:
  void cancel() {
    cancelled_ = true;
    if (action_) std::exchange(action_, nullptr)();
  }
  bool cancelled() const { return cancelled_; }
  void set_action(std::function<void()> action) { action_ = std::move(action); }  // the client's

 private:
  bool cancelled_ = false;
  std::function<void()> action_;
};

struct ClientRequest {
  std::string method = "GET";
  std::string url;  // "http://host:port/path?query" or https
  Headers headers;  // Host, Content-Length and Connection are the client's
  std::string body;
  std::chrono::milliseconds connect_timeout{2'000};
  std::chrono::milliseconds header_timeout{600'000};  // from the request sent to the response head
  std::chrono::milliseconds idle_timeout{60'000};     // between two reads of the body
  std::shared_ptr<Cancellation> cancellation;
};

// A response whose body is read piece by piece. Destroying it before the end closes the connection: the server sees the
// client gone.
class ClientResponse {
 public:
  virtual ~ClientResponse() = default;
  virtual int status() const = 0;
  virtual const Headers& headers() const = 0;
  virtual std::string_view header(std::string_view lower_case_name) const = 0;
  // The next piece of the body, at most 64 KB; nullopt at its end. Throws ClientError when the peer vanishes, sends
  // what is not HTTP, or is silent for idle_timeout.
  virtual Task<std::optional<std::string>> read() = 0;
  // The whole body; Error{kResourceExhausted} over `max_bytes`.
  virtual Task<std::string> read_all(size_t max_bytes = 64 << 20) = 0;
  // From another coroutine of the same executor: a pending read() fails at once.
  virtual void abort() = 0;
};

struct ClientOptions {
  size_t max_idle_per_host = 64;
  size_t max_idle_total = 0;  // 0: what descriptors.h plans
  std::chrono::milliseconds max_idle{30'000};
  size_t max_header_bytes = 64 << 10;
  bool verify_tls = true;  // --insecure turns it off in tools
};

class Client {
 public:
  static std::unique_ptr<Client> create(ClientOptions options = {});
  virtual ~Client() = default;
  // Sends and waits for the response head. Throws Error{kInvalidArgument} (url), ClientError "cannot connect to ...:
  // refused", and Error{kResourceExhausted} when this process has no file descriptor for a connection, which says
  // nothing about the peer. An idempotent request on a pooled connection that turns out to be closed is sent once more
  // on a fresh one; POST never after its first byte was written to a fresh connection.
  virtual Task<std::unique_ptr<ClientResponse>> send(ClientRequest request) = 0;
};

// Runs a coroutine to its end on an I/O loop of its own, on the calling thread; for tools and tests. Rethrows what it
// throws. What it spawned (spawn.h) and did not wait for ends with it.
void run_blocking(Task<void> task);

}  // namespace moectl::http
