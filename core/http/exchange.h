// The server's Exchange: frames an answer onto a connection. Lives within Connection::serve_one, on the same strand.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "core/http/connection.h"
#include "core/http/response_head.h"

namespace moectl::http {

class ConnectionExchange final : public Exchange {
 public:
  ConnectionExchange(Connection& connection) : connection_(connection) {}

  const Request& request() const override { return request_; }
  Task<void> respond(Response response) override;
  Task<void> start_body(Response head, std::optional<size_t> content_length) override;
  Task<void> start_stream(Headers extra) override;
  Task<void> write(std::string data) override;
  Task<void> finish() override;
  void abort() override;
  bool responded() const override { return state_ != State::kOpen; }
  void on_client_gone(std::function<void()> callback) override;

  // For the connection.
  Request& mutable_request() { return request_; }
  void set_request_version(int minor_version, bool keep_alive) {
    minor_version_ = minor_version, keep_alive_ = keep_alive;
  }
  void close_after() { keep_alive_ = false; }
  bool keep_alive() const { return keep_alive_; }
  bool complete() const { return state_ == State::kComplete; }
  void end_handler();  // drops the callback: the handler's locals are gone
  void client_gone();

 private:
  enum class State { kOpen, kStreaming, kComplete, kAborted };  // kStreaming: a body in pieces, too
  std::string format_head(const Response& response, BodyFraming framing, size_t content_length) const;
  bool sends_no_body() const { return framing_ == BodyFraming::kNone || request_.method == "HEAD"; }
  // Of an answer in pieces; throws kCancelled.
  void check_writable();
  Task<void> send(std::string_view data);
  [[noreturn]] void throw_cancelled();
  [[noreturn]] void fail_length(std::string_view problem);

  Connection& connection_;
  Request request_;
  State state_ = State::kOpen;
  // Of an answer in pieces.
  BodyFraming framing_ = BodyFraming::kChunked;
  bool is_stream_ = false;    // a client that shut down its sending side ends it
  size_t bytes_missing_ = 0;  // of a body with Content-Length
  std::string unsent_head_;   // of a body: goes with the first piece
  int minor_version_ = 1;
  bool keep_alive_ = false;
  bool handler_running_ = true, gone_told_ = false;
  std::function<void()> gone_callback_;
};

}  // namespace moectl::http
