// The request loop. Bytes in and out are in connection_io.cpp.
#include "core/http/connection.h"

#include <random>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/http/chunked_decoder.h"
#include "core/http/exchange.h"

namespace moectl::http {
namespace {

std::string fresh_request_id() {
  thread_local std::mt19937_64 generator{[] {
    std::random_device device;
    return (uint64_t{device()} << 32) ^ device();
  }()};
  return fmt::format("{:016x}{:016x}", generator(), generator());
}

std::string message_of(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

bool is_cancelled(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return e.code() == Code::kCancelled;
  } catch (...) {
    return false;
  }
}

// Counts an exchange as open, also when its coroutine is destroyed.
struct OpenCount {
  explicit OpenCount(std::atomic<size_t>& c) : counter(c) { ++counter; }
  ~OpenCount() { --counter; }
  OpenCount(const OpenCount&) = delete;
  std::atomic<size_t>& counter;
};

Refusal too_many_bodies(size_t most) {
  return {503, fmt::format("the requests under way fill the {} bytes that this server keeps of bodies; try again later",
                           most)};
}

}  // namespace

// What one body takes of the bound on all of them, until its request is answered.
class BodyCharge {
 public:
  explicit BodyCharge(std::atomic<size_t>& total) : total_(total) {}
  ~BodyCharge() { total_ -= bytes_; }
  BodyCharge(const BodyCharge&) = delete;
  // The total with a body of this size.
  size_t set(size_t bytes) {
    const size_t more = bytes - std::exchange(bytes_, bytes);  // bodies only grow
    return total_.fetch_add(more) + more;
  }

 private:
  std::atomic<size_t>& total_;
  size_t bytes_ = 0;
};

Connection::Connection(std::unique_ptr<Stream> stream, boost::asio::any_io_executor strand, std::string peer,
                       ServerContext& context)
    : stream_(std::move(stream)),
      strand_(strand),
      peer_(std::move(peer)),
      context_(context),
      input_event_(strand),
      write_timer_(strand) {
  idle_since_ = Clock::now().time_since_epoch().count();
}

Task<void> Connection::run() {
  try {
    // The timer closes the socket under a handshake that does not end; serve_one has deadlines of its own.
    write_deadline_ = Clock::now() + context_.options.header_timeout;
    writing_ = true;
    arm_write_timer();
    boost::system::error_code ec = co_await stream_->handshake();
    writing_ = false;
    write_timer_.cancel();
    if (ec) {
      log::debug("http {}: {}: TLS handshake failed: {}", context_.options.name, peer_, ec.message());
    } else {
      bool more = true;
      while (more) more = co_await serve_one();
      co_await linger();
    }
  } catch (const std::exception& e) {
    log::error("http {}: connection of {} failed: {}", context_.options.name, peer_, e.what());
  }
  close();
  context_.on_closed(this);
}

Task<bool> Connection::serve_one() {
  ConnectionExchange exchange(*this);
  Request& request = exchange.mutable_request();
  request.peer = peer_;
  RequestHead head;
  refusal_.reset();
  bool got_head = co_await read_head(head);
  idle_since_ = 0;
  request.method = std::move(head.method);
  request.path = std::move(head.path);
  request.query = std::move(head.query);
  request.headers = std::move(head.headers);
  std::string_view given_id = request.header("x-request-id");
  request.id = is_sane_request_id(given_id) ? std::string(given_id) : fresh_request_id();
  exchange.set_request_version(head.minor_version, got_head && head.keep_alive);
  if (!got_head) {
    if (refusal_) co_await refuse(exchange, *refusal_);
    co_return false;
  }
  OpenCount open(context_.open_exchanges);
  const bool has_body = head.chunked || head.content_length > 0;

  // Refused before the body is read: the body's bytes are never taken for a request, so the connection ends.
  std::optional<Response> early;
  RouteTable::Match match;
  early = ask_gate(request);
  if (!early) {
    match = context_.routes.find(request.method, request.path);
    if (!match.handler && match.allow.empty()) {
      early = error_response(request, 404, fmt::format("nothing is served at {}", request.path), nullptr);
    } else if (!match.handler) {
      std::string message = fmt::format("{} does not take {}; allowed: {}", request.path, request.method, match.allow);
      early = error_response(request, 405, message, nullptr);
      early->headers.emplace_back("Allow", match.allow);
    }
  }
  if (early) {
    if (has_body) exchange.close_after();
    co_await exchange.respond(std::move(*early));
    co_return exchange.complete() && exchange.keep_alive();
  }

  BodyCharge charge(context_.body_bytes);
  if (has_body) {
    bool got_body = co_await read_body(head, request.body, charge);
    if (!got_body) {
      if (refusal_) co_await refuse(exchange, *refusal_);
      co_return false;
    }
  }
  co_await run_handler(*match.handler, exchange);
  co_return exchange.complete() && exchange.keep_alive() && !gone();
}

std::optional<Response> Connection::ask_gate(const Request& request) {
  try {
    return context_.gate ? context_.gate(request) : std::nullopt;
  } catch (...) {
    const std::string message = message_of(std::current_exception());
    log::error("http {}: the gate failed on {} {}: {}", context_.options.name, request.method, request.path, message);
    return error_response(request, 500, message, std::current_exception());
  }
}

Task<bool> Connection::read_head(RequestHead& head) {
  idle_since_ = Clock::now().time_since_epoch().count();
  HeadLimits limits;
  limits.max_head_bytes = context_.options.max_header_bytes;
  HeadScanner scanner(limits.max_head_bytes);
  if (input().empty() && context_.draining) co_return false;
  bool started = !input().empty();
  Clock::time_point deadline =
      Clock::now() + (started ? context_.options.header_timeout : context_.options.idle_timeout);
  for (;;) {
    size_t size = scanner.scan(input());
    if (scanner.refusal()) {
      refusal_ = scanner.refusal();
      co_return false;
    }
    if (size > 0) {
      refusal_ = parse_head(input().substr(0, size), limits, head);
      consume(size);
      co_return !refusal_;
    }
    if (gone()) co_return false;
    bool came = co_await wait_input(deadline);
    if (closed_) co_return false;
    if (!came && !started) co_return false;
    if (!came) {
      refusal_ = Refusal{408, "the request head did not arrive in time"};
      co_return false;
    }
    if (!started && !input().empty()) {
      started = true;
      deadline = Clock::now() + context_.options.header_timeout;
    }
  }
}

Task<bool> Connection::read_body(const RequestHead& head, std::string& body, BodyCharge& charge) {
  if (head.content_length > context_.options.max_body_bytes) {
    refusal_ = Refusal{413, fmt::format("the request body has {} bytes; at most {} are accepted", head.content_length,
                                        context_.options.max_body_bytes)};
    co_return false;
  }
  const size_t most = context_.options.max_total_body_bytes;
  if (context_.body_bytes + head.content_length > most) {  // refused before it sends what has no room
    refusal_ = too_many_bodies(most);
    co_return false;
  }
  if (head.expect_continue && input().empty()) {
    bool sent = co_await write_all("HTTP/1.1 100 Continue\r\n\r\n");
    if (!sent) co_return false;
  }
  read_bytes_ = kBodyRead;
  bool complete = co_await read_body_bytes(head, body, charge);
  read_bytes_ = kIdleRead;
  co_return complete;
}

Task<bool> Connection::read_body_bytes(const RequestHead& head, std::string& body, BodyCharge& charge) {
  ChunkedDecoder decoder(context_.options.max_body_bytes);
  const Clock::time_point start = Clock::now();
  size_t received = 0;
  for (;;) {
    std::string_view available = input();
    size_t taken;
    if (head.chunked) {
      taken = decoder.feed(available, body);
      refusal_ = decoder.refusal();
    } else {
      taken = std::min<uint64_t>(available.size(), head.content_length - body.size());
      body.append(available.substr(0, taken));
    }
    consume(taken);
    received += taken;
    if (charge.set(body.size()) > context_.options.max_total_body_bytes && !refusal_)
      refusal_ = too_many_bodies(context_.options.max_total_body_bytes);
    if (refusal_) co_return false;
    if (head.chunked ? decoder.done() : body.size() == head.content_length) co_return true;
    if (gone()) co_return false;
    // No silence longer than header_timeout, and the minimum rate over the whole body.
    auto seconds = std::chrono::seconds(received / std::max<size_t>(1, context_.options.min_body_bytes_per_second));
    Clock::time_point now = Clock::now(), slowest = start + context_.options.header_timeout + seconds;
    bool came = co_await wait_input(std::min(now + context_.options.header_timeout, slowest));
    if (closed_) co_return false;
    if (!came) {
      refusal_ = Refusal{408, "the request body did not arrive in time"};
      co_return false;
    }
  }
}

Task<void> Connection::run_handler(const Handler& handler, ConnectionExchange& exchange) {
  const Request& request = exchange.request();
  exchange_ = &exchange;
  start_read();
  std::exception_ptr error;
  try {
    co_await handler(exchange);
  } catch (...) {
    error = std::current_exception();
  }
  exchange.end_handler();
  exchange_ = nullptr;
  const std::string message = error ? message_of(error) : "the handler ended without an answer";
  if (error && is_cancelled(error) && gone()) co_return;
  if (!exchange.responded()) {
    Response response = error_response(request, 500, message, error);
    if (response.status == 500)
      log::error("http {}: {} {} ({}): {}", context_.options.name, request.method, request.path, request.id, message);
    co_await exchange.respond(std::move(response));
  } else if (error) {
    log::error("http {}: {} {} ({}) failed after its answer began: {}", context_.options.name, request.method,
               request.path, request.id, message);
    exchange.abort();
  } else if (!exchange.complete() && !gone()) {
    log::debug("http {}: {} {} ({}): the stream was not finished", context_.options.name, request.method, request.path,
               request.id);
  }
}

Task<void> Connection::refuse(ConnectionExchange& exchange, const Refusal& refusal) {
  exchange.close_after();
  log::debug("http {}: {}: {} {}", context_.options.name, peer_, refusal.status, refusal.message);
  Response response = error_response(exchange.request(), refusal.status, refusal.message, nullptr);
  co_await exchange.respond(std::move(response));
}

Response Connection::error_response(const Request& request, int status, std::string_view message,
                                    std::exception_ptr error) {
  try {
    return context_.on_error(request, status, message, error);
  } catch (const std::exception& e) {
    log::error("http {}: the error responder failed: {}", context_.options.name, e.what());
  }
  Response empty;
  empty.status = 500;
  return empty;
}

}  // namespace moectl::http
