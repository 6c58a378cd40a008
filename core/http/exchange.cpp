#include "core/http/exchange.h"

#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"

namespace moectl::http {
namespace {

constexpr size_t kOneWrite = 64 << 10;  // a copy of this size is cheaper than a second system call and packet

void check_response(const Response& response) {
  CHECK(response.status >= 200 && response.status <= 599, "{} is not a final HTTP status", response.status);
}

bool is_bodiless(int status) {
  return status == 204 || status == 304;
}

}  // namespace

std::string ConnectionExchange::format_head(const Response& response, BodyFraming framing,
                                            size_t content_length) const {
  ResponseHead head;
  head.status = response.status;
  head.content_type = response.content_type;
  head.framing = framing;
  head.content_length = content_length;
  head.keep_alive = keep_alive_;
  head.minor_version = minor_version_;
  head.request_id = request_.id;
  return format_response_head(head, response.headers);
}

Task<void> ConnectionExchange::respond(Response response) {
  CHECK(state_ == State::kOpen, "{} {}: answered twice", request_.method, request_.path);
  check_response(response);
  state_ = State::kAborted;  // until the last byte is out
  if (connection_.context_.draining) keep_alive_ = false;
  framing_ = is_bodiless(response.status) ? BodyFraming::kNone : BodyFraming::kContentLength;
  std::string out = format_head(response, framing_, response.body.size());
  if (sends_no_body()) response.body.clear();
  bool together = response.body.size() <= kOneWrite;
  if (together) out += response.body;
  bool sent = co_await connection_.write_all(out);
  if (sent && !together) sent = co_await connection_.write_all(response.body);
  if (sent) state_ = State::kComplete;
}

Task<void> ConnectionExchange::start_body(Response head, std::optional<size_t> content_length) {
  CHECK(state_ == State::kOpen, "{} {}: answered twice", request_.method, request_.path);
  CHECK(head.body.empty(), "{} {}: the head of an answer in pieces has a body", request_.method, request_.path);
  check_response(head);
  state_ = State::kStreaming;
  if (is_bodiless(head.status)) {
    framing_ = BodyFraming::kNone;
  } else if (content_length) {
    framing_ = BodyFraming::kContentLength;
  } else {
    framing_ = minor_version_ == 0 ? BodyFraming::kUntilClose : BodyFraming::kChunked;
  }
  if (framing_ == BodyFraming::kUntilClose || connection_.context_.draining) keep_alive_ = false;
  bytes_missing_ = content_length.value_or(0);
  unsent_head_ = format_head(head, framing_, bytes_missing_);
  co_return;
}

Task<void> ConnectionExchange::start_stream(Headers extra) {
  CHECK(state_ == State::kOpen, "{} {}: answered twice", request_.method, request_.path);
  state_ = State::kStreaming;
  is_stream_ = true;
  // HTTP/1.0 knows no chunks: the end of the connection ends the stream.
  framing_ = minor_version_ == 0 ? BodyFraming::kUntilClose : BodyFraming::kChunked;
  if (framing_ == BodyFraming::kUntilClose || connection_.context_.draining) keep_alive_ = false;
  Response head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers = std::move(extra);
  head.headers.emplace_back("Cache-Control", "no-cache");
  head.headers.emplace_back("X-Accel-Buffering", "no");
  std::string out = format_head(head, framing_, 0);
  check_writable();
  co_await send(out);
}

Task<void> ConnectionExchange::write(std::string data) {
  check_writable();
  if (data.empty()) co_return;  // an empty chunk would end the body
  if (framing_ == BodyFraming::kContentLength) {
    if (data.size() > bytes_missing_) fail_length("more");
    bytes_missing_ -= data.size();
  }
  if (sends_no_body()) co_return;
  const std::string_view tail = framing_ == BodyFraming::kChunked ? "\r\n" : "";
  std::string out = std::exchange(unsent_head_, {});
  if (framing_ == BodyFraming::kChunked) out += fmt::format("{:x}\r\n", data.size());
  if (data.size() <= kOneWrite) {
    out.append(data).append(tail);
    co_await send(out);
  } else {
    data.append(tail);
    if (!out.empty()) co_await send(out);
    co_await send(data);
  }
}

Task<void> ConnectionExchange::finish() {
  check_writable();
  if (framing_ == BodyFraming::kContentLength && bytes_missing_ > 0) fail_length("fewer");
  std::string end = std::exchange(unsent_head_, {});
  if (framing_ == BodyFraming::kChunked && !sends_no_body()) end += "0\r\n\r\n";
  if (!end.empty()) co_await send(end);
  if (state_ == State::kStreaming) state_ = State::kComplete;
}

void ConnectionExchange::check_writable() {
  if (state_ == State::kAborted) throw_cancelled();
  CHECK(state_ == State::kStreaming, "{} {}: write() or finish() outside of an answer in pieces", request_.method,
        request_.path);
  if (is_stream_ ? connection_.gone() : connection_.broken_ || connection_.closed_) throw_cancelled();
}

// Our defect; the client must not take the answer for complete.
void ConnectionExchange::fail_length(std::string_view problem) {
  abort();
  throw Error(Code::kInternal, fmt::format("{} {}: the handler wrote {} bytes than the Content-Length it gave",
                                           request_.method, request_.path, problem));
}

void ConnectionExchange::abort() {
  if (state_ != State::kComplete) state_ = State::kAborted;
  keep_alive_ = false;
}

Task<void> ConnectionExchange::send(std::string_view data) {
  bool sent = co_await connection_.write_all(data);
  if (!sent) throw_cancelled();
}

void ConnectionExchange::throw_cancelled() {
  state_ = State::kAborted;
  keep_alive_ = false;
  throw Error(Code::kCancelled, connection_.stalled_ ? "the client reads too slowly: the write stalled"
                                                     : "the client closed the connection");
}

void ConnectionExchange::on_client_gone(std::function<void()> callback) {
  gone_callback_ = std::move(callback);
  if (!connection_.gone() || gone_told_) return;
  // Not from here: the caller may hold a lock that the callback takes.
  boost::asio::post(connection_.strand_, [self = connection_.shared_from_this(), this] {
    if (self->exchange_ == this) client_gone();
  });
}

void ConnectionExchange::client_gone() {
  if (gone_told_ || !gone_callback_ || !handler_running_ || state_ == State::kComplete) return;
  gone_told_ = true;
  std::function<void()> callback = std::move(gone_callback_);
  try {
    callback();
  } catch (const std::exception& e) {
    log::error("http {}: a client-gone callback of {} failed: {}", connection_.context_.options.name, request_.path,
               e.what());
  }
}

void ConnectionExchange::end_handler() {
  handler_running_ = false;
  gone_callback_ = nullptr;
}

}  // namespace moectl::http
