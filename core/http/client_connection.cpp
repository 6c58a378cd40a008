#include "core/http/client_connection.h"

#include <unistd.h>

#include <vector>

#include "core/http/client_error.h"
#include "core/http/descriptors.h"

namespace moectl::http {

namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

struct Resolved {
  boost::system::error_code ec;
  std::vector<tcp::endpoint> endpoints;
};

Task<Resolved> resolve(std::string host, uint16_t port, std::chrono::milliseconds timeout) {
  boost::system::error_code ec;
  const asio::ip::address address = asio::ip::make_address(host, ec);
  Resolved result;
  if (!ec) {
    result.endpoints.emplace_back(address, port);
    co_return result;
  }
  // A name is looked up on a thread of the system's, which cannot be interrupted: this coroutine waits for the answer
  // with a deadline and drops a late one.
  AsyncQueue<Resolved> answers;
  tcp::resolver resolver(co_await asio::this_coro::executor);
  resolver.async_resolve(host, std::to_string(port), tcp::resolver::numeric_service,
                         [answers](boost::system::error_code failed, tcp::resolver::results_type found) mutable {
                           Resolved answer{failed, {}};
                           for (const auto& entry : found) answer.endpoints.push_back(entry.endpoint());
                           answers.push(std::move(answer));
                         });
  std::optional<Resolved> answer = co_await answers.pop(timeout);
  if (answer) co_return std::move(*answer);
  result.ec = asio::error::timed_out;
  co_return result;
}

}  // namespace

std::string plain_words(const boost::system::error_code& ec) {
  if (ec == asio::error::connection_refused) return "refused";
  if (ec == asio::error::connection_reset || ec == asio::error::broken_pipe) return "the connection was reset";
  if (ec == asio::error::eof) return "the connection was closed";
  if (ec == asio::error::host_not_found || ec == asio::error::host_not_found_try_again) return "unknown host";
  if (ec == asio::error::timed_out) return "no answer";
  return ec.message();
}

std::string ClientConnection::failure() const {
  if (cancelled_) return "cancelled";
  if (timed_out_) return "no answer in time";
  return plain_words(error_);
}

Task<void> ClientConnection::connect(Url url, std::chrono::milliseconds timeout, TlsClientContext* tls) {
  const Clock::time_point deadline = Clock::now() + timeout;
  Resolved resolved = co_await resolve(url.host, url.port, timeout);
  error_ = resolved.ec;
  for (const tcp::endpoint& endpoint : resolved.endpoints) {
    if (cancelled_ || timed_out_) break;
    co_await connect_to(endpoint, deadline);
    if (!error_) break;
  }
  if (!cancelled_ && !timed_out_ && !error_ && connecting_) {
    boost::system::error_code ignored;
    connecting_->set_option(tcp::no_delay(true), ignored);
    stream_ = tls ? make_tls_client_stream(std::move(*connecting_), *tls, url.host)
                  : make_plain_stream(std::move(*connecting_));
    connecting_.reset();
    arm(deadline);
    error_ = co_await stream_->handshake();
    disarm();
    if (!error_ && !closed_) co_return;
  }
  if (cancelled_) throw Error(Code::kCancelled, fmt::format("the request to {} was cancelled", url.authority));
  const bool resolver_failed = resolved.ec && !timed_out_;  // its error does not tell why
  const bool is_errno = error_.category() == boost::system::system_category();
  if ((is_errno && is_out_of_descriptors(error_.value())) || (resolver_failed && !has_free_descriptor()))
    throw Error(Code::kResourceExhausted,
                fmt::format("this process has no free file descriptor (ulimit -n {}) for a connection to {}: raise the "
                            "limit, or send fewer requests at once",
                            descriptor_limit(), url.authority));
  const std::string why = timed_out_ || error_ == asio::error::timed_out
                              ? fmt::format("no answer within {} ms", timeout.count())
                              : plain_words(error_);
  const bool refused = !timed_out_ && error_ == asio::error::connection_refused;
  throw ClientError(refused ? ClientFailure::kRefused : ClientFailure::kNoConnection,
                    fmt::format("cannot connect to {}: {}", url.authority, why));
}

Task<void> ClientConnection::connect_to(tcp::endpoint endpoint, Clock::time_point deadline) {
  connecting_ = std::make_unique<tcp::socket>(executor_);
  v6_ = endpoint.address().is_v6();
  arm(deadline);
  error_ = {};
  co_await connecting_->async_connect(endpoint, asio::redirect_error(asio::use_awaitable, error_));
  disarm();
}

void ClientConnection::adopt(const IdleDescriptor& idle) {
  tcp::socket socket(executor_);
  boost::system::error_code ec;
  socket.assign(idle.v6 ? tcp::v6() : tcp::v4(), idle.fd, ec);
  if (ec) {
    ::close(idle.fd);
    throw Error(Code::kInternal, fmt::format("a kept connection cannot be used: {}", ec.message()));
  }
  v6_ = idle.v6;
  stream_ = make_plain_stream(std::move(socket));
}

bool ClientConnection::release(IdleDescriptor& idle) {
  if (closed_ || !stream_) return false;
  idle.fd = stream_->release();
  idle.v6 = v6_;
  idle.since = Clock::now();
  closed_ = true;
  timer_.cancel();
  return idle.fd >= 0;
}

Task<size_t> ClientConnection::write(std::string_view data, std::chrono::milliseconds stall, Clock::time_point end) {
  error_ = {};
  size_t written = 0;
  if (closed_) co_return 0;
  written = stream_->try_write(data, error_);
  while (!error_ && !closed_ && written < data.size()) {
    arm(std::min(Clock::now() + stall, end));
    written += co_await stream_->write_some(data.substr(written), error_);
    disarm();
  }
  co_return written;
}

Task<size_t> ClientConnection::read(std::span<char> into, Clock::time_point deadline) {
  if (closed_) co_return 0;
  error_ = {};
  arm(deadline);
  const size_t n = co_await stream_->read_some(into, error_);
  disarm();
  co_return closed_ ? 0 : n;
}

void ClientConnection::arm(Clock::time_point deadline) {
  deadline_ = deadline;
  armed_ = true;
  if (!timer_running_ || deadline < timer_.expiry()) run_timer();
}

void ClientConnection::run_timer() {
  timer_running_ = true;
  timer_.expires_at(deadline_);
  timer_.async_wait([weak = weak_from_this()](boost::system::error_code ec) {
    const auto self = weak.lock();
    if (!self || ec || self->closed_) return;
    self->timer_running_ = false;
    if (!self->armed_) return;
    if (Clock::now() < self->deadline_) return self->run_timer();
    self->timed_out_ = true;
    self->close();
  });
}

void ClientConnection::close() {
  if (closed_) return;
  closed_ = true;
  boost::system::error_code ignored;
  if (connecting_) connecting_->close(ignored);
  if (stream_) stream_->close();
  timer_.cancel();
}

}  // namespace moectl::http
