#include "core/pd/channel.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "core/base/check.h"

namespace moectl {
namespace {

using Clock = TcpChannel::Clock;
using Millis = TcpChannel::Millis;

constexpr Millis kAcceptPause{
    100};  // after the system refused a connection (out of descriptors): it will not change at once
constexpr int kBacklog = 64;
constexpr size_t kMaxParts = 512;  // of one sendmsg; below IOV_MAX

[[noreturn]] void unavailable(std::string message) {
  throw Error(Code::kUnavailable, std::move(message));
}

Clock::time_point after(Millis wait) {
  const auto now = Clock::now();
  return wait >= Clock::time_point::max() - now ? Clock::time_point::max() : now + wait;
}

// poll() until something is ready or `deadline`; false: it passed.
bool wait_ready(std::span<pollfd> fds, Clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<Millis>(deadline - Clock::now()).count();
    const int n = ::poll(fds.data(), fds.size(), int(std::clamp<int64_t>(left, 0, 60'000)));
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) unavailable(fmt::format("poll failed: {}", std::strerror(errno)));
    if (Clock::now() >= deadline) return false;
  }
}

std::string address_text(const sockaddr* address, socklen_t length) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getnameinfo(address, length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "?";
  return std::strchr(host, ':') ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

struct AddressList {
  addrinfo* first = nullptr;
  ~AddressList() {
    if (first) ::freeaddrinfo(first);
  }
};

void resolve(const std::string& host, uint16_t port, int flags, AddressList& out) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  if (int rc = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &out.first); rc != 0)
    unavailable(fmt::format("{}: the name cannot be resolved: {}", host, ::gai_strerror(rc)));
}

void set_option(int fd, int level, int option, int value) {
  (void)::setsockopt(fd, level, option, &value, sizeof value);  // all of them are improvements, none is needed
}

}  // namespace

Endpoint parse_endpoint(std::string_view text) {
  const size_t colon = text.rfind(':');
  Endpoint e;
  unsigned port = 0;
  bool ok = colon != std::string_view::npos && colon > 0 && text.size() <= 300;
  if (ok) {
    std::string_view host = text.substr(0, colon), digits = text.substr(colon + 1);
    if (host.starts_with('[') && host.ends_with(']')) {
      host = host.substr(1, host.size() - 2);
    } else {
      ok = host.find(':') == std::string_view::npos;
    }
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
    ok = ok && !host.empty() && error == std::errc() && end == digits.data() + digits.size() && port >= 1 &&
         port <= 65535;
    e.host = host;
    e.port = uint16_t(port);
  }
  if (!ok)
    throw Error(
        Code::kInvalidArgument,
        fmt::format("\"{}\" is no endpoint; expected host:port, for example 127.0.0.1:9100", text.substr(0, 300)));
  return e;
}

// ------------------------------------------------------------------------------------------------ Waker
Waker::Waker() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (fd_ < 0) unavailable(fmt::format("no event descriptor: {}", std::strerror(errno)));
}
Waker::~Waker() {
  ::close(fd_);
}
void Waker::wake() {
  const uint64_t one = 1;
  (void)!::write(fd_, &one, sizeof one);  // fails only when it is awake already
}
void Waker::reset() {
  uint64_t value;
  (void)!::read(fd_, &value, sizeof value);
}

// ------------------------------------------------------------------------------------------------ TcpChannel
std::unique_ptr<TcpChannel> TcpChannel::connect(const Endpoint& endpoint, Millis timeout, const Waker& stop) {
  const std::string name = fmt::format("{}:{}", endpoint.host, endpoint.port);
  const auto deadline = after(timeout);
  AddressList addresses;
  resolve(endpoint.host, endpoint.port, 0, addresses);
  std::string why = "it has no address";
  for (const addrinfo* a = addresses.first; a; a = a->ai_next) {
    const int fd = ::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
      why = std::strerror(errno);
      continue;
    }
    auto channel = std::make_unique<TcpChannel>(fd, address_text(a->ai_addr, a->ai_addrlen));
    if (::connect(fd, a->ai_addr, a->ai_addrlen) == 0) return channel;
    if (errno != EINPROGRESS) {
      why = std::strerror(errno);
      continue;
    }
    pollfd fds[] = {{fd, POLLOUT, 0}, {stop.fd(), POLLIN, 0}};
    if (!wait_ready(fds, deadline))
      unavailable(fmt::format("{}: no answer to the connection within {} ms", name, timeout.count()));
    if (fds[1].revents) unavailable(fmt::format("{}: the connection was given up", name));
    int error = 0;
    socklen_t length = sizeof error;
    (void)::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error == 0) return channel;
    why = std::strerror(error);
  }
  unavailable(fmt::format("{}: cannot connect: {}", name, why));
}

TcpChannel::TcpChannel(int fd, std::string peer) : fd_(fd), peer_(std::move(peer)) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

TcpChannel::~TcpChannel() {
  ::close(fd_);
}

size_t TcpChannel::recv_some(std::span<std::byte> out, Millis silence, Clock::time_point deadline) {
  const auto silent_at = after(silence), until = std::min(deadline, silent_at);
  for (;;) {
    const ssize_t n = ::recv(fd_, out.data(), out.size(), MSG_DONTWAIT);
    if (n > 0) return size_t(n);
    if (n == 0) unavailable(fmt::format("{}: the peer closed the connection", peer_));
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) unavailable(fmt::format("{}: {}", peer_, std::strerror(errno)));
    pollfd fds[] = {{fd_, POLLIN, 0}};
    if (!wait_ready(fds, until))
      unavailable(silent_at <= deadline ? fmt::format("{}: the peer was silent for {} ms", peer_, silence.count())
                                        : fmt::format("{}: the peer took too long", peer_));
  }
}

void TcpChannel::send_all(std::span<iovec> parts, Millis stall) {
  while (!parts.empty()) {
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = std::min(parts.size(), kMaxParts);
    ssize_t n = ::sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) unavailable(fmt::format("{}: {}", peer_, std::strerror(errno)));
      pollfd fds[] = {{fd_, POLLOUT, 0}};
      if (!wait_ready(fds, after(stall)))
        unavailable(fmt::format("{}: the peer took no data for {} ms", peer_, stall.count()));
      continue;
    }
    while (!parts.empty() && size_t(n) >= parts[0].iov_len) {
      n -= ssize_t(parts[0].iov_len);
      parts = parts.subspan(1);
    }
    if (n > 0) {
      parts[0].iov_base = static_cast<std::byte*>(parts[0].iov_base) + n;
      parts[0].iov_len -= size_t(n);
    }
  }
}

void TcpChannel::shutdown() {
  (void)::shutdown(fd_, SHUT_RDWR);
}

// ------------------------------------------------------------------------------------------------ TcpListener
TcpListener::TcpListener(const std::string& host, uint16_t port) {
  AddressList addresses;
  resolve(host, port, AI_PASSIVE, addresses);
  std::string why = "it has no address";
  for (const addrinfo* a = addresses.first; a && fd_ < 0; a = a->ai_next) {
    const int fd = ::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0) set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (fd >= 0 && ::bind(fd, a->ai_addr, a->ai_addrlen) == 0 && ::listen(fd, kBacklog) == 0) {
      fd_ = fd;
      break;
    }
    why = std::strerror(errno);
    if (fd >= 0) ::close(fd);
  }
  if (fd_ < 0)
    throw Error(Code::kResourceExhausted,
                fmt::format("{}:{}: cannot listen: {} (another port, or 0 to pick one?)", host, port, why));
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  (void)::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length);
  port_ = ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                              : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

TcpListener::~TcpListener() {
  ::close(fd_);
}

std::unique_ptr<TcpChannel> TcpListener::accept(const Waker& wake) {
  pollfd fds[] = {{fd_, POLLIN, 0}, {wake.fd(), POLLIN, 0}};
  while (!wait_ready(fds, Clock::time_point::max())) {
  }
  if (fds[1].revents) return nullptr;
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  const int fd = ::accept4(fd_, reinterpret_cast<sockaddr*>(&address), &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    pollfd only_wake[] = {{wake.fd(), POLLIN, 0}};
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
      (void)wait_ready(only_wake, after(kAcceptPause));
    return nullptr;
  }
  return std::make_unique<TcpChannel>(fd, address_text(reinterpret_cast<sockaddr*>(&address), length));
}

}  // namespace moectl
