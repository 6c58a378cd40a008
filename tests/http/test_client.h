// A blocking raw-socket client and a server fixture. The client writes exactly the bytes it is given.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>

#include "core/base/error.h"
#include "core/http/server.h"
#include "core/http/sse.h"

namespace moectl::http {

class RawClient {
 public:
  explicit RawClient(uint16_t port, int receive_buffer = 0) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    timeval limit{30, 0};  // a server that never answers fails the test instead of hanging it
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (receive_buffer) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    if (port) connect(port);
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  void connect(uint16_t port) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&a), sizeof a), 0) << std::strerror(errno);
  }
  // False when the server has closed: it may refuse before everything is sent.
  bool send(std::string_view data) {
    while (!data.empty()) {
      ssize_t n = ::send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      data.remove_prefix(size_t(n));
    }
    return true;
  }
  void half_close() { ::shutdown(fd_, SHUT_WR); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  bool more() {
    char buffer[65536];
    ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
    if (n <= 0) timed_out_ = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (n > 0) in_.append(buffer, size_t(n));
    return n > 0;
  }
  std::string until_eof() {
    while (more()) {
    }
    EXPECT_FALSE(timed_out_) << "the server neither answered nor closed";
    return std::exchange(in_, {});
  }
  std::string until(std::string_view mark) {
    size_t at;
    while ((at = in_.find(mark)) == std::string::npos)
      if (!more()) return {};
    std::string out = in_.substr(0, at + mark.size());
    in_.erase(0, out.size());
    return out;
  }
  struct Answer {
    int status = 0;
    std::string head, body;
  };
  Answer answer(bool head_only = false) {
    Answer a;
    a.head = until("\r\n\r\n");
    if (a.head.size() < 12) return a;
    a.status = std::stoi(a.head.substr(9, 3));
    if (head_only || a.status == 100) return a;
    if (size_t at = a.head.find("Content-Length: "); at != std::string::npos) {
      size_t n = std::stoul(a.head.substr(at + 16));
      while (in_.size() < n && more()) {
      }
      a.body = in_.substr(0, n);
      in_.erase(0, n);
    } else if (a.head.find("Transfer-Encoding: chunked") != std::string::npos) {
      for (;;) {
        std::string line = until("\r\n");
        if (line.empty()) return a.status = -1, a;  // cut before the final chunk
        size_t n = std::stoul(line, nullptr, 16);
        while (in_.size() < n + 2 && more()) {
        }
        a.body += in_.substr(0, n);
        in_.erase(0, n + 2);
        if (n == 0) break;
      }
    } else {
      a.body = until_eof();
    }
    return a;
  }
  // Sends, then reads to the end of the connection; the status of the first answer, 0 when there was none.
  int status_then_close(std::string_view bytes) {
    send(bytes);
    text = until_eof();
    return text.size() < 12 ? 0 : std::stoi(text.substr(9, 3));
  }
  std::string text;

 private:
  int fd_;
  std::string in_;
  bool timed_out_ = false;
};

// Set once from any thread, waited for without polling.
class Flag {
 public:
  void set() {
    std::lock_guard lock(mutex_);
    set_ = true;
    changed_.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return set_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool set_ = false;
};

inline Response plain_error(const Request&, int status, std::string_view message, std::exception_ptr) {
  Response r;
  r.status = status;
  r.body = "error: " + std::string(message);
  return r;
}

class ServerTest : public ::testing::Test {
 protected:
  void TearDown() override {
    if (server) server->stop(std::chrono::milliseconds(0));
  }
  // Routes: GET /hello, POST /echo, POST /size; others are added before start().
  void make(ServerOptions options = {}) {
    server = Server::create(options, plain_error);
    server->route("GET", "/hello", [](Exchange& x) -> Task<void> {
      Response r;
      r.body = "hello";
      co_await x.respond(std::move(r));
    });
    server->route("POST", "/echo", [](Exchange& x) -> Task<void> {
      Response r;
      r.body = x.request().body;
      co_await x.respond(std::move(r));
    });
  }
  void start(ServerOptions options = {}, int threads = 2) {
    make(options);
    server->start(threads);
  }
  // The process still serves, whatever was done to it before.
  void expect_alive() {
    RawClient client(server->port());
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_EQ(client.answer().body, "hello");
  }
  std::unique_ptr<Server> server;
};

inline const std::string kHello = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";

}  // namespace moectl::http
