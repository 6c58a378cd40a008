// Bytes in and out of a connection, its deadlines and its end. The request loop is in connection.cpp.
#include "core/base/log.h"
#include "core/http/connection.h"
#include "core/http/exchange.h"

namespace moectl::http {

namespace asio = boost::asio;

namespace {
constexpr size_t kReadAhead = 64 << 10;  // at most this much is kept of requests sent before their turn
constexpr std::chrono::seconds kLinger{2};
}  // namespace

void Connection::consume(size_t n) {
  in_pos_ += n;
  if (in_pos_ == in_.size()) {
    in_.clear();
    in_pos_ = 0;
    if (in_.capacity() > kReadAhead) in_.shrink_to_fit();
  }
}

void Connection::start_read() {
  // The head's limit is above the read-ahead only when configured so; it must always be possible to reach it.
  if (reading_ || gone() || input().size() >= std::max(kReadAhead, context_.options.max_header_bytes)) return;
  if (staging_.size() != read_bytes_) {
    staging_.resize(read_bytes_);
    staging_.shrink_to_fit();
  }
  reading_ = true;
  stream_->read_some(staging_,
                     [self = shared_from_this()](boost::system::error_code ec, size_t n) { self->on_read(ec, n); });
}

void Connection::on_read(boost::system::error_code ec, size_t n) {
  reading_ = false;
  if (in_pos_ > 0) {
    in_.erase(0, in_pos_);
    in_pos_ = 0;
  }
  in_.append(staging_.data(), n);
  if (ec) {
    eof_ = true;
    notify_gone();
  } else if (exchange_) {
    start_read();
  }
  input_event_.cancel();
}

Task<bool> Connection::wait_input(Clock::time_point deadline) {
  start_read();
  if (!reading_) co_return true;
  boost::system::error_code ec;
  input_event_.expires_at(deadline);
  co_await input_event_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  co_return ec || !reading_;
}

Task<bool> Connection::write_all(std::string_view data) {
  if (broken_ || closed_) co_return false;
  boost::system::error_code ec;
  data.remove_prefix(stream_->try_write(data, ec));
  if (!ec && data.empty()) co_return true;
  const ServerOptions& options = context_.options;
  auto seconds = std::chrono::seconds(data.size() / std::max<size_t>(1, options.min_body_bytes_per_second));
  const Clock::time_point slowest = Clock::now() + options.write_stall_timeout + seconds;
  while (!ec && !data.empty()) {
    writing_ = true;
    write_deadline_ = std::min(Clock::now() + options.write_stall_timeout, slowest);
    arm_write_timer();
    size_t n = co_await stream_->write_some(data, ec);
    writing_ = false;
    data.remove_prefix(n);
  }
  write_timer_.cancel();
  if (!ec) co_return true;
  broken_ = true;
  notify_gone();
  co_return false;
}

// One timer closes the socket under whatever does not get on: pending operations then end with an error.
void Connection::arm_write_timer() {
  write_timer_.expires_at(write_deadline_);
  write_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
    // The wait may have ended just before it was cancelled or moved: the deadline decides.
    if (ec || !self->writing_ || Clock::now() < self->write_deadline_) return;
    self->stalled_ = true;
    self->close();
  });
}

void Connection::notify_gone() {
  if (exchange_) exchange_->client_gone();
}

void Connection::close_if_idle() {
  asio::post(strand_, [self = shared_from_this()] {
    if (self->idle_since_ != 0) self->close();
  });
}

void Connection::cut() {
  asio::post(strand_, [self = shared_from_this()] { self->close(); });
}

void Connection::close() {
  if (closed_) return;
  closed_ = true;
  stream_->close();
  notify_gone();
  input_event_.cancel();
  // A cancelled wait's handler would be dropped by expires_at only; the timer itself goes with the connection.
  if (!writing_) write_timer_.cancel();
}

// An answer must reach a client that is still sending: closing with unread bytes would reset the connection and take
// the answer with it. So say that nothing more comes, read on and throw away until the client closes, for a bounded
// time.
Task<void> Connection::linger() {
  if (gone()) co_return;
  idle_since_ = Clock::now().time_since_epoch().count();
  stream_->shutdown_send(shared_from_this());
  const Clock::time_point deadline = Clock::now() + kLinger;
  while (!gone() && !context_.draining && Clock::now() < deadline) {
    consume(input().size());
    bool came = co_await wait_input(deadline);
    if (!came) break;
  }
}

}  // namespace moectl::http
