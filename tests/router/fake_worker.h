// Workers that behave badly on purpose, speaking raw bytes: each connection has a thread of its own. GET /load is
// answered; what happens to the POSTs is the test's matter.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "core/api/cluster.h"
#include "core/base/error.h"

namespace moectl::router {

inline std::string load_report(const char* role, std::string state = "ready", std::string instance_id = "") {
  api::LoadReport report;
  report.role = role;
  report.model = "demo";
  report.state = std::move(state);
  report.instance_id = std::move(instance_id);
  report.model_hash = "h";
  report.exactness = "e";
  report.kv_format = "f32-1";
  if (report.role == "prefill") report.kv_endpoint = "127.0.0.1:9";
  return api::to_json(report);
}

class RawConnection {
 public:
  explicit RawConnection(int fd) : fd_(fd) {}
  // False when the peer has gone.
  bool send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      text.remove_prefix(size_t(n));
    }
    return true;
  }
  // A worker that closes afterwards says so: a client that used the connection again could not know.
  void answer(std::string_view body, std::string_view connection = "close") {
    send(fmt::format(
        "HTTP/1.1 200 OK\r\nConnection: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
        connection, body.size(), body));
  }
  void chunk(std::string_view data) { send(fmt::format("{:x}\r\n{}\r\n", data.size(), data)); }
  void start_stream() {
    send(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: "
        "chunked\r\n\r\n");
  }
  void wait_for_close() {
    char buffer[4096];
    while (::recv(fd_, buffer, sizeof buffer, 0) > 0) {
    }
  }
  // Head and body of the next request; empty when the peer has gone.
  std::string next_request() {
    size_t head = std::string::npos, length = 0;
    for (;;) {
      if (head == std::string::npos && (head = in_.find("\r\n\r\n")) != std::string::npos) {
        const size_t field = in_.find("Content-Length: ");
        length = field < head ? std::stoul(in_.substr(field + 16)) : 0;
      }
      if (head != std::string::npos && in_.size() >= head + 4 + length) {
        std::string request = in_.substr(0, head + 4 + length);
        in_.erase(0, request.size());
        return request;
      }
      char buffer[4096];
      const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
      if (n <= 0) return "";
      in_.append(buffer, size_t(n));
    }
  }

 private:
  int fd_;
  std::string in_;
};

class RawWorker {
 public:
  // Called with each POST and the number of POSTs so far; when it returns the connection is closed.
  using Behaviour = std::function<void(RawConnection&, const std::string& request, int number)>;

  explicit RawWorker(Behaviour behaviour, const char* role = "decode") : behaviour_(std::move(behaviour)), role_(role) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener_, 64), 0);
    EXPECT_EQ(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    accepting_ = std::thread([this] { accept_loop(); });
  }
  ~RawWorker() { stop(); }
  // Closes the port and every connection.
  void stop() {
    if (listener_ < 0) return;
    ::shutdown(listener_, SHUT_RDWR);
    accepting_.join();
    ::close(std::exchange(listener_, -1));
    {
      std::lock_guard lock(mutex_);
      for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
  }
  std::string url() const { return fmt::format("http://127.0.0.1:{}", port_); }
  int num_posts() const { return num_posts_; }

  // What GET /load says; `silent`: nothing.
  std::atomic<const char*> state{"ready"}, instance_id{""};
  std::atomic<bool> silent{false};

 private:
  void accept_loop() {
    for (;;) {
      const int fd = ::accept(listener_, nullptr, nullptr);
      if (fd < 0) return;
      {
        std::lock_guard lock(mutex_);
        open_.push_back(fd);
      }
      threads_.emplace_back([this, fd] {
        serve(fd);
        std::lock_guard lock(mutex_);
        open_.remove(fd);
        ::close(fd);
      });
    }
  }
  void serve(int fd) {
    RawConnection connection(fd);
    for (;;) {
      const std::string request = connection.next_request();
      if (request.empty()) return;
      if (request.starts_with("GET /load ")) {
        if (silent) return connection.wait_for_close();
        connection.answer(load_report(role_, state.load(), instance_id.load()), "keep-alive");
        continue;
      }
      behaviour_(connection, request, ++num_posts_);
      return;
    }
  }

  Behaviour behaviour_;
  const char* role_;
  int listener_ = -1;
  uint16_t port_ = 0;
  std::atomic<int> num_posts_{0};
  std::mutex mutex_;
  std::list<int> open_;
  std::list<std::thread> threads_;
  std::thread accepting_;
};

}  // namespace moectl::router
