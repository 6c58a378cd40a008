#include "core/http/exchange.h"

#include <charconv>

#include "core/base/check.h"
#include "core/base/log.h"

namespace moectl::http {

Task<void> ConnectionExchange::respond(Response response) {
  CHECK(state_ == State::kOpen, "{} {}: answered twice", request_.method, request_.path);
  CHECK(response.status >= 200 && response.status <= 599, "{} is not a final HTTP status", response.status);
  state_ = State::kAborted;  // until the last byte is out
  if (connection_.context_.draining) keep_alive_ = false;
  bool no_body = response.status == 204 || response.status == 304;
  ResponseHead head;
  head.status = response.status;
  head.content_type = response.content_type;
  head.framing = no_body ? BodyFraming::kNone : BodyFraming::kContentLength;
  head.content_length = response.body.size();
  head.keep_alive = keep_alive_;
  head.minor_version = minor_version_;
  head.request_id = request_.id;
  std::string out = format_response_head(head, response.headers);
  if (no_body || request_.method == "HEAD") response.body.clear();
  constexpr size_t kOneWrite = 64 << 10;  // a copy of this size is cheaper than a second system call and packet
  bool together = response.body.size() <= kOneWrite;
  if (together) out += response.body;
  bool sent = co_await connection_.write_all(out);
  if (sent && !together) sent = co_await connection_.write_all(response.body);
  if (sent) state_ = State::kComplete;
}

Task<void> ConnectionExchange::start_stream(Headers extra) {
  CHECK(state_ == State::kOpen, "{} {}: answered twice", request_.method, request_.path);
  state_ = State::kStreaming;
  // HTTP/1.0 knows no chunks: the end of the connection ends the stream.
  if (minor_version_ == 0 || connection_.context_.draining) keep_alive_ = false;
  ResponseHead head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.framing = minor_version_ == 0 ? BodyFraming::kUntilClose : BodyFraming::kChunked;
  head.keep_alive = keep_alive_;
  head.minor_version = minor_version_;
  head.request_id = request_.id;
  extra.emplace_back("Cache-Control", "no-cache");
  extra.emplace_back("X-Accel-Buffering", "no");
  std::string out = format_response_head(head, extra);
  co_await send(out);
}

Task<void> ConnectionExchange::write(std::string data) {
  if (state_ == State::kAborted) throw_cancelled();
  CHECK(state_ == State::kStreaming, "write() outside a stream");
  if (data.empty()) co_return;  // an empty chunk would end the body
  if (request_.method == "HEAD") {
    if (connection_.gone()) throw_cancelled();
    co_return;
  }
  if (minor_version_ == 0) {
    co_await send(data);
    co_return;
  }
  std::string chunk = fmt::format("{:x}\r\n", data.size());
  chunk.append(data).append("\r\n");
  co_await send(chunk);
}

Task<void> ConnectionExchange::finish() {
  if (state_ == State::kAborted) throw_cancelled();
  CHECK(state_ == State::kStreaming, "finish() outside a stream");
  if (minor_version_ != 0 && request_.method != "HEAD") co_await send("0\r\n\r\n");
  if (state_ == State::kStreaming) state_ = State::kComplete;
}

void ConnectionExchange::abort() {
  if (state_ != State::kComplete) state_ = State::kAborted;
  keep_alive_ = false;
}

Task<void> ConnectionExchange::send(std::string_view data) {
  if (connection_.gone()) throw_cancelled();
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
