// HTTP/1.1 server: one coroutine a connection, strict request validation in front of Boost.Beast, bounded everything.
// Handlers see Request and Exchange only. Runs on its own I/O thread(s); handlers must not block them (see run_on).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/http/async.h"

namespace moectl::http {

using Headers = std::vector<std::pair<std::string, std::string>>;  // names in lower case, in order of arrival

struct Request {
  std::string method;  // "GET"
  std::string path;    // percent-decoded, without the query
  std::string query;   // after '?', raw
  Headers headers;
  std::string body;
  std::string id;      // X-Request-Id when it is sane (<= 128 of [A-Za-z0-9._-]), else a fresh one
  std::string peer;    // "127.0.0.1:51234", for logs only
  std::string_view header(std::string_view lower_case_name) const;  // first value, or empty
};

struct Response {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  Headers headers;  // extra ones; Content-Length, Date, X-Request-Id and Connection are the server's
};

// One request and its answer. All methods are called from the coroutine the handler runs in.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const Request& request() const = 0;
  // A whole answer. Exactly one of respond() and start_stream() is called.
  virtual Task<void> respond(Response response) = 0;
  // Chunked text/event-stream. write() throws Error{kCancelled} when the client is gone or reads too slowly
  // (`write_stall_timeout`); finish() ends the stream cleanly, abort() closes without the final chunk.
  virtual Task<void> start_stream(Headers extra = {}) = 0;
  virtual Task<void> write(std::string data) = 0;
  virtual Task<void> finish() = 0;
  virtual void abort() = 0;
  virtual bool responded() const = 0;  // respond() or start_stream() was called
  // Called once, on the I/O thread, when the client closes its side before the answer is complete.
  virtual void on_client_gone(std::function<void()> callback) = 0;
};

using Handler = std::function<Task<void>(Exchange&)>;
// Turns an exception that left a handler (before it responded) into an answer; the server never writes bodies of its own
// making except through this.
using ErrorResponder = std::function<Response(const Request&, int status, std::string_view message, std::exception_ptr)>;

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // 0 picks one
  std::string name = "api";  // for logs
  size_t max_header_bytes = 32 << 10;
  size_t max_body_bytes = 64 << 20;
  size_t max_connections = 4096;
  std::chrono::milliseconds header_timeout{10'000}, idle_timeout{75'000}, write_stall_timeout{30'000};
  size_t min_body_bytes_per_second = 1024;
  std::string ssl_certfile, ssl_keyfile;  // both or none
};

class Server {
 public:
  // Binds at once. Throws Error{kUnavailable} "port 8000 on 127.0.0.1 is in use ..." or Error{kInvalidArgument}.
  static std::unique_ptr<Server> create(ServerOptions options, ErrorResponder on_error);
  virtual ~Server() = default;
  // `path` is exact; a route that ends in "/*" takes everything below it. Before start() only. `HEAD` follows GET.
  // An unknown path gives 404, a known path with another method 405 + Allow.
  virtual void route(std::string method, std::string path, Handler handler) = 0;
  // Seen before the route, for every request: return a Response to refuse it (authentication), nullopt to go on.
  virtual void set_gate(std::function<std::optional<Response>(const Request&)> gate) = 0;
  virtual void start(int num_threads = 1) = 0;
  virtual uint16_t port() const = 0;
  // Stop accepting, close idle connections, wait up to `grace` for open exchanges, then close them. Blocks.
  virtual void stop(std::chrono::milliseconds grace) = 0;
  virtual size_t open_exchanges() const = 0;
};

}  // namespace moectl::http
