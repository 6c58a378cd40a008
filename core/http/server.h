// HTTP/1.1 server: one coroutine per connection, a strict parser of ours (request_validator.h), bounded everything.
// Handlers see Request and Exchange only. Runs on its own I/O thread(s); handlers must not block them (see run_on).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/http/async.h"
#include "core/http/message.h"

namespace moectl::http {

// One request and its answer. All methods are called from the coroutine the handler runs in.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const Request& request() const = 0;
  // A whole answer. Exactly one of respond(), start_body() and start_stream() is called. Does not throw when the client
  // is gone.
  virtual Task<void> respond(Response response) = 0;
  // A whole answer in pieces: write() each, then finish(). `head.body` is empty. Framed by Content-Length when the
  // length is known, else chunked (HTTP/1.0: by the end of the connection). The head is sent with the first piece.
  // Bytes that are more or fewer than `content_length` are a defect of the handler: write() or finish() throws
  // Error{kInternal}, and the client sees the connection close before the answer is complete.
  virtual Task<void> start_body(Response head, std::optional<size_t> content_length) = 0;
  // Chunked text/event-stream.
  virtual Task<void> start_stream(Headers extra = {}) = 0;
  // Of a body or stream. write() throws Error{kCancelled} when the client is gone or reads too slowly
  // (`write_stall_timeout`); finish() ends the answer cleanly, abort() closes so that the client sees it cut off.
  virtual Task<void> write(std::string data) = 0;
  virtual Task<void> finish() = 0;
  virtual void abort() = 0;
  virtual bool responded() const = 0;  // respond(), start_body() or start_stream() was called
  // Called once, on the I/O thread, when the client closes its side before the answer is complete, reads too slowly, or
  // is cut by stop(). Never called inside on_client_gone itself, nor after the handler returned. A client that shuts
  // down only its sending side counts as gone: its streams end, though whole answers still try to reach it.
  virtual void on_client_gone(std::function<void()> callback) = 0;
};

using Handler = std::function<Task<void>(Exchange&)>;
// Turns an exception that left a handler before it responded into an answer; the server writes no bodies of its own but
// through this. `status` is 500 for an exception; without one (null) the fault is the protocol's and `status` belongs
// to it.
using ErrorResponder =
    std::function<Response(const Request&, int status, std::string_view message, std::exception_ptr)>;

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;         // 0 picks one
  std::string name = "api";  // for logs
  size_t max_header_bytes = 32 << 10;
  size_t max_body_bytes = 64 << 20;
  // Bodies in memory, of all connections together, from their first byte to the end of their answer; beyond: 503.
  size_t max_total_body_bytes = 1 << 30;
  size_t max_connections = 4096;  // at most; fewer when descriptors are scarce (descriptors.h)
  // File descriptors that one connection takes: 2 when each request also holds a connection to a worker.
  size_t descriptors_per_connection = 1;
  // An operations port: its few connections come out of the reserve and keep working when the data port is full.
  bool is_ops = false;
  // header_timeout: from the first byte of a request to the end of its headers, and the longest silence within a body.
  std::chrono::milliseconds header_timeout{10'000}, idle_timeout{75'000}, write_stall_timeout{30'000};
  // Over a whole body or answer, besides the timeouts above: no client holds a connection with one byte per minute.
  size_t min_body_bytes_per_second = 1024;
  std::string ssl_certfile, ssl_keyfile;  // both or none
};

class Server {
 public:
  // Binds at once. Throws Error{kResourceExhausted} "port 8000 on 127.0.0.1 is in use ...", Error{kInvalidArgument} for
  // a bad host and Error{kBadConfig} for unusable TLS files.
  static std::unique_ptr<Server> create(ServerOptions options, ErrorResponder on_error);
  virtual ~Server() = default;
  // `path` is exact; a route that ends in "/*" takes everything below it. Before start() only. `HEAD` follows GET.
  // An unknown path gives 404, a known path with another method 405 + Allow.
  virtual void route(std::string method, std::string path, Handler handler) = 0;
  // Seen before the route and before the body is read, for every request: return a Response to refuse it
  // (authentication), nullopt to go on.
  virtual void set_gate(std::function<std::optional<Response>(const Request&)> gate) = 0;
  virtual void start(int num_threads = 1) = 0;
  virtual uint16_t port() const = 0;
  // Stop accepting, close idle connections, wait up to `grace` for open exchanges, then close them. Blocks; never from
  // an I/O thread. Handlers that outlive the cut (they saw on_client_gone) are waited for a little, then dropped.
  virtual void stop(std::chrono::milliseconds grace) = 0;
  virtual size_t open_exchanges() const = 0;
};

}  // namespace moectl::http
