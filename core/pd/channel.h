// TCP connections for the data that workers exchange: plain sockets, every wait bounded. A channel is read by one
// thread and written by one thread at a time; shutdown() may come from any thread and ends both. It knows bytes,
// nothing of messages. Errors are Error{kUnavailable} and name the peer.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace moectl {

struct Endpoint {
  std::string host;  // name or address, without brackets
  uint16_t port = 0;
};
// "host:port" or "[v6]:port"; throws Error{kInvalidArgument}.
Endpoint parse_endpoint(std::string_view text);

// Ends waits from another thread: once woken, every wait on it returns at once.
class Waker {
 public:
  Waker();
  ~Waker();
  Waker(const Waker&) = delete;
  Waker& operator=(const Waker&) = delete;
  void wake();
  void reset();
  int fd() const { return fd_; }

 private:
  int fd_;
};

class TcpChannel {
 public:
  using Clock = std::chrono::steady_clock;
  using Millis = std::chrono::milliseconds;

  // Tries every address of the host until `timeout` is over or `stop` is woken. (A name is resolved by the system, with
  // its timeouts.)
  static std::unique_ptr<TcpChannel> connect(const Endpoint& endpoint, Millis timeout, const Waker& stop);
  TcpChannel(int fd, std::string peer);
  ~TcpChannel();
  TcpChannel(const TcpChannel&) = delete;
  TcpChannel& operator=(const TcpChannel&) = delete;

  // At least one byte, at most out.size(). Throws when the peer closed, was silent for `silence`, or `deadline` passed.
  size_t recv_some(std::span<std::byte> out, Millis silence, Clock::time_point deadline = Clock::time_point::max());
  // Every byte of `parts` (which it consumes). Throws when the peer took nothing for `stall`.
  void send_all(std::span<iovec> parts, Millis stall);
  void shutdown();
  const std::string& peer() const { return peer_; }  // "127.0.0.1:40123"

 private:
  int fd_;
  std::string peer_;
};

class TcpListener {
 public:
  // Port 0 picks one. Throws Error{kResourceExhausted} when the address cannot be had.
  TcpListener(const std::string& host, uint16_t port);
  ~TcpListener();
  TcpListener(const TcpListener&) = delete;
  TcpListener& operator=(const TcpListener&) = delete;

  uint16_t port() const { return port_; }
  // Waits for a connection; null when `wake` was woken, or when the system refused one (it is asked again by the next
  // call).
  std::unique_ptr<TcpChannel> accept(const Waker& wake);

 private:
  int fd_ = -1;
  uint16_t port_ = 0;
};

}  // namespace moectl
