// One client's connection: reads requests, runs their handlers one after another, writes answers. One coroutine (run)
// plus at most one outstanding read, which goes on while a handler runs, so that a client that leaves is noticed; what
// it reads ahead (pipelined requests) waits in a bounded buffer. Everything runs on the connection's strand except
// where noted.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core/http/request_validator.h"
#include "core/http/routes.h"
#include "core/http/server.h"
#include "core/http/stream.h"

namespace moectl::http {

class Connection;
class ConnectionExchange;
class BodyCharge;

// What the connections of one server share. Written before start(); outlives every connection.
struct ServerContext {
  ServerOptions options;
  ErrorResponder on_error;
  std::function<std::optional<Response>(const Request&)> gate;
  RouteTable routes;
  std::function<void(Connection*)> on_closed;  // called once a connection, on its strand, when it has ended
  std::atomic<bool> draining{false};
  std::atomic<size_t> open_exchanges{0};
  std::atomic<size_t> body_bytes{0};  // max_total_body_bytes
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::unique_ptr<Stream> stream, boost::asio::any_io_executor strand, std::string peer,
             ServerContext& context);
  Task<void> run();

  // From any thread.
  Clock::rep idle_since() const {
    return idle_since_;
  }                      // 0: busy with a request; else the time since when it may be evicted
  void close_if_idle();  // evicted, or the server drains
  void cut();            // the end of grace: closes whatever runs

 private:
  friend class ConnectionExchange;
  static constexpr size_t kIdleRead = 4 << 10;  // idle connections are many: their buffers are small
  static constexpr size_t kBodyRead = 64 << 10;

  // Input.
  std::string_view input() const { return std::string_view(in_).substr(in_pos_); }
  void consume(size_t n);
  void start_read();
  void on_read(boost::system::error_code ec, size_t n);
  Task<bool> wait_input(Clock::time_point deadline);  // false: nothing came before the deadline
  // Output. False when the client is gone or reads too slowly.
  Task<bool> write_all(std::string_view data);
  void arm_write_timer();

  // The steps of one request. They return false when the connection must end; refusal_ then says what to answer first.
  Task<bool> serve_one();
  std::optional<Response> ask_gate(const Request& request);
  Task<bool> read_head(RequestHead& head);
  Task<bool> read_body(const RequestHead& head, std::string& body, BodyCharge& charge);
  Task<bool> read_body_bytes(const RequestHead& head, std::string& body, BodyCharge& charge);
  Task<void> run_handler(const Handler& handler, ConnectionExchange& exchange);
  Task<void> refuse(ConnectionExchange& exchange, const Refusal& refusal);
  Response error_response(const Request& request, int status, std::string_view message, std::exception_ptr error);
  Task<void> linger();
  void close();
  bool gone() const { return eof_ || broken_ || closed_; }
  void notify_gone();

  std::unique_ptr<Stream> stream_;
  boost::asio::any_io_executor strand_;
  std::string peer_;
  ServerContext& context_;

  std::string in_;  // received and not yet consumed: from in_pos_
  size_t in_pos_ = 0;
  std::vector<char> staging_;  // the outstanding read writes here
  size_t read_bytes_ = kIdleRead;
  bool reading_ = false, eof_ = false;
  boost::asio::steady_timer input_event_;  // expires at a deadline; cancelled when something arrived

  boost::asio::steady_timer write_timer_;
  Clock::time_point write_deadline_;
  bool writing_ = false, broken_ = false, stalled_ = false;

  bool closed_ = false;
  std::atomic<Clock::rep> idle_since_{0};
  ConnectionExchange* exchange_ = nullptr;  // while its handler runs
  std::optional<Refusal> refusal_;
};

}  // namespace moectl::http
