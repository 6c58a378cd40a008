// The server's Exchange: frames an answer onto a connection. Lives within Connection::serve_one, on the same strand.
#pragma once

#include <functional>
#include <string>

#include "core/http/connection.h"
#include "core/http/response_head.h"

namespace moectl::http {

class ConnectionExchange final : public Exchange {
 public:
  ConnectionExchange(Connection& connection) : connection_(connection) {}

  const Request& request() const override { return request_; }
  Task<void> respond(Response response) override;
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
  enum class State { kOpen, kStreaming, kComplete, kAborted };
  Task<void> send(std::string_view data);  // of a stream; throws kCancelled
  [[noreturn]] void throw_cancelled();

  Connection& connection_;
  Request request_;
  State state_ = State::kOpen;
  int minor_version_ = 1;
  bool keep_alive_ = false;
  bool handler_running_ = true, gone_told_ = false;
  std::function<void()> gone_callback_;
};

}  // namespace moectl::http
