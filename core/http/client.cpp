// Requests, responses and the pool of idle connections. Connections are kept as bare descriptors, so that one pool
// serves coroutines of any executor and outlives each of them.
#include "core/http/client.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <deque>
#include <limits>
#include <map>

#include "core/base/error.h"
#include "core/http/chunked_decoder.h"
#include "core/http/client_connection.h"
#include "core/http/client_message.h"
#include "core/http/descriptors.h"
#include "core/http/request_validator.h"

namespace moectl::http {
namespace {

namespace asio = boost::asio;

constexpr size_t kReadBytes = 16 << 10;
constexpr int kMaxInterim = 8;          // 1xx answers before the final one
constexpr size_t kMaxHosts = 1024;      // with idle connections
constexpr size_t kOneWrite = 64 << 10;  // up to this size head and body go out together
constexpr size_t kGiveWay = 16;         // idle connections closed when there is no descriptor for a new one

// Idle connections by authority. Any thread.
class Pool {
 public:
  explicit Pool(const ClientOptions& options) : options_(options) {}
  ~Pool() {
    for (auto& [key, idle] : hosts_)
      for (const IdleDescriptor& entry : idle) ::close(entry.fd);
  }
  Pool(const Pool&) = delete;

  // The one used last that is still open.
  std::optional<IdleDescriptor> take(const std::string& authority) {
    std::lock_guard lock(mutex_);
    auto host = hosts_.find(authority);
    if (host == hosts_.end()) return std::nullopt;
    drop_old(host->second);
    std::optional<IdleDescriptor> taken;
    while (!taken && !host->second.empty()) {
      const IdleDescriptor entry = host->second.back();
      host->second.pop_back();
      --size_;
      if (is_open(entry.fd)) {
        taken = entry;
      } else {
        ::close(entry.fd);
      }
    }
    if (host->second.empty()) hosts_.erase(host);
    return taken;
  }
  void put(const std::string& authority, const IdleDescriptor& entry) {
    std::lock_guard lock(mutex_);
    if (options_.max_idle_per_host == 0 || (hosts_.size() >= kMaxHosts && !hosts_.contains(authority))) {
      ::close(entry.fd);
      return;
    }
    drop_old(hosts_[authority]);
    if (hosts_[authority].size() >= options_.max_idle_per_host) drop_oldest(hosts_[authority]);
    if (size_ >= options_.max_idle_total) close_longest_idle(1);
    hosts_[authority].push_back(entry);
    ++size_;
  }
  // Closes up to `count` connections, those that have been idle longest; returns how many there were.
  size_t give_way(size_t count) {
    std::lock_guard lock(mutex_);
    return close_longest_idle(count);
  }

 private:
  void drop_oldest(std::deque<IdleDescriptor>& idle) {
    ::close(idle.front().fd);
    idle.pop_front();
    --size_;
  }
  void drop_old(std::deque<IdleDescriptor>& idle) {
    const Clock::time_point oldest = Clock::now() - options_.max_idle;
    while (!idle.empty() && idle.front().since < oldest) drop_oldest(idle);
  }
  size_t close_longest_idle(size_t count) {
    size_t closed = 0;
    for (; closed < count && size_ > 0; ++closed) {
      auto longest = hosts_.end();
      for (auto host = hosts_.begin(); host != hosts_.end(); ++host)
        if (!host->second.empty() &&
            (longest == hosts_.end() || host->second.front().since < longest->second.front().since))
          longest = host;
      drop_oldest(longest->second);
    }
    return closed;
  }
  // Neither closed by the peer nor with bytes that no request asked for.
  static bool is_open(int fd) {
    char byte;
    return ::recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  }

  ClientOptions options_;
  std::mutex mutex_;
  std::map<std::string, std::deque<IdleDescriptor>> hosts_;  // oldest first
  size_t size_ = 0;                                          // over all hosts
};

class ResponseImpl final : public ClientResponse {
 public:
  ResponseImpl(std::shared_ptr<ClientConnection> connection, std::shared_ptr<Pool> pool, std::string authority,
               ReceivedHead head, std::string received, std::chrono::milliseconds idle_timeout)
      : connection_(std::move(connection)),
        pool_(std::move(pool)),
        authority_(std::move(authority)),
        head_(std::move(head)),
        received_(std::move(received)),
        idle_timeout_(idle_timeout),
        left_(head_.content_length) {
    if (head_.body == BodyEnd::kNone) finish();
  }
  ~ResponseImpl() override { connection_->close(); }

  int status() const override { return head_.status; }
  const Headers& headers() const override { return head_.headers; }
  std::string_view header(std::string_view lower_case_name) const override {
    for (const auto& [name, value] : head_.headers)
      if (name == lower_case_name) return value;
    return {};
  }
  void abort() override { connection_->cancel(); }

  Task<std::optional<std::string>> read() override {
    std::string piece;
    while (!done_) {
      if (connection_->cancelled()) throw_cancelled();
      decode(piece);
      if (!piece.empty()) co_return piece;
      if (done_) break;
      co_await receive();
    }
    co_return std::nullopt;
  }

  Task<std::string> read_all(size_t max_bytes) override {
    if (head_.body == BodyEnd::kLength && head_.content_length > max_bytes) too_large(max_bytes);
    std::string body;
    for (;;) {
      std::optional<std::string> piece = co_await read();
      if (!piece) co_return body;
      if (piece->size() > max_bytes - body.size()) too_large(max_bytes);
      body += *piece;
    }
  }

 private:
  [[noreturn]] void fail(ClientFailure failure, std::string_view what) const {
    if (connection_->cancelled()) throw_cancelled();
    throw ClientError(failure, fmt::format("the answer of {} {}", authority_, what));
  }
  [[noreturn]] void throw_cancelled() const {
    throw Error(Code::kCancelled, fmt::format("the answer of {} was cancelled", authority_));
  }
  [[noreturn]] void too_large(size_t max_bytes) const {
    throw Error(Code::kResourceExhausted,
                fmt::format("the answer of {} is larger than {} bytes", authority_, max_bytes));
  }

  // Moves what was received into `piece`, and notes the end.
  void decode(std::string& piece) {
    if (head_.body == BodyEnd::kChunked) {
      const size_t taken = decoder_.feed(received_, piece);
      if (decoder_.refusal()) {
        const std::string why = decoder_.refusal()->message;
        connection_->close();
        fail(ClientFailure::kNotHttp, fmt::format("is not HTTP: {}", why));
      }
      received_.erase(0, taken);
      if (decoder_.done()) finish();
    } else if (head_.body == BodyEnd::kLength) {
      const size_t taken = size_t(std::min<uint64_t>(received_.size(), left_));
      piece.append(received_, 0, taken);
      received_.erase(0, taken);
      left_ -= taken;
      if (left_ == 0) finish();
    } else {
      piece.swap(received_);
      if (closed_in_order_) finish();
    }
  }

  Task<void> receive() {
    if (buffer_.empty()) buffer_.resize(kReadBytes);
    const size_t n = co_await connection_->read(buffer_, Clock::now() + idle_timeout_);
    received_.append(buffer_.data(), n);
    if (n > 0) co_return;
    if (connection_->ended() && head_.body == BodyEnd::kClose) {
      closed_in_order_ = true;
      co_return;
    }
    connection_->close();
    if (connection_->timed_out())
      fail(ClientFailure::kTimeout, fmt::format("stopped coming: silent for {} ms", idle_timeout_.count()));
    if (connection_->ended())
      fail(ClientFailure::kBroken,
           head_.body == BodyEnd::kLength
               ? fmt::format("ended early: the connection was closed {} bytes before the end", left_)
               : "ended early: the connection was closed in the middle of it");
    fail(ClientFailure::kBroken, fmt::format("ended early: {}", connection_->failure()));
  }

  // The body is complete: the connection may serve the next request, unless something is wrong with it.
  void finish() {
    done_ = true;
    IdleDescriptor idle;
    if (head_.keep_alive && received_.empty() && !connection_->cancelled() && connection_->release(idle))
      pool_->put(authority_, idle);
    else
      connection_->close();
  }

  std::shared_ptr<ClientConnection> connection_;
  std::shared_ptr<Pool> pool_;
  std::string authority_;
  ReceivedHead head_;
  std::string received_;  // and not yet decoded
  std::vector<char> buffer_;
  std::chrono::milliseconds idle_timeout_;
  uint64_t left_;
  ChunkedDecoder decoder_{std::numeric_limits<size_t>::max()};
  bool done_ = false, closed_in_order_ = false;
};

bool is_idempotent(std::string_view method) {
  static constexpr std::array<std::string_view, 5> kMethods = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"};
  return std::find(kMethods.begin(), kMethods.end(), method) != kMethods.end();
}

// A request on its way: what one attempt over one connection needs.
struct Sending {
  ClientRequest request;
  Url url;
  std::string key;  // of the pool
  std::string head;
};

struct Attempt {
  std::unique_ptr<ClientResponse> response;  // null: the kept connection was dead and the request did not go through
};

class ClientImpl final : public Client {
 public:
  explicit ClientImpl(const ClientOptions& options) : options_(with_plan(options)) {}

  Task<std::unique_ptr<ClientResponse>> send(ClientRequest request) override {
    Sending sending;
    sending.url = parse_url(request.url);
    sending.key = sending.url.authority;
    sending.head = format_request_head(request.method, sending.url, request.headers, request.body.size());
    sending.request = std::move(request);
    if (!sending.url.tls) {
      if (const std::optional<IdleDescriptor> idle = pool_->take(sending.key)) {
        asio::any_io_executor executor = co_await asio::this_coro::executor;
        auto connection = std::make_shared<ClientConnection>(executor);
        connection->adopt(*idle);
        Attempt attempt = co_await exchange(sending, connection, true);
        if (attempt.response) co_return std::move(attempt.response);
      }
    }
    std::shared_ptr<ClientConnection> connection = co_await connect(sending, true);
    if (!connection) connection = co_await connect(sending, false);
    Attempt attempt = co_await exchange(sending, connection, false);
    co_return std::move(attempt.response);
  }

 private:
  static ClientOptions with_plan(ClientOptions options) {
    if (options.max_idle_total == 0) options.max_idle_total = plan_descriptors(descriptor_limit(), 2).max_idle_clients;
    return options;
  }

  // A fresh connection. Null, only with `may_give_way`: there was no descriptor for it, and idle connections were
  // closed to make room for another attempt.
  Task<std::shared_ptr<ClientConnection>> connect(const Sending& sending, bool may_give_way) {
    asio::any_io_executor executor = co_await asio::this_coro::executor;
    auto connection = std::make_shared<ClientConnection>(executor);
    watch(sending.request.cancellation, connection);
    try {
      co_await connection->connect(sending.url, sending.request.connect_timeout, sending.url.tls ? tls() : nullptr);
    } catch (const Error& e) {
      if (e.code() != Code::kResourceExhausted || !may_give_way || pool_->give_way(kGiveWay) == 0) throw;
      connection.reset();
    }
    co_return connection;
  }

  static void watch(const std::shared_ptr<Cancellation>& cancellation,
                    const std::shared_ptr<ClientConnection>& connection) {
    if (!cancellation) return;
    if (cancellation->cancelled()) connection->cancel();
    cancellation->set_action([weak = std::weak_ptr<ClientConnection>(connection)] {
      if (const auto alive = weak.lock()) alive->cancel();
    });
  }

  TlsClientContext* tls() {
    std::lock_guard lock(tls_mutex_);
    if (!tls_) tls_ = std::make_unique<TlsClientContext>(options_.verify_tls);
    return tls_.get();
  }

  Task<Attempt> exchange(Sending& sending, std::shared_ptr<ClientConnection> connection, bool reused) {
    const ClientRequest& request = sending.request;
    watch(request.cancellation, connection);
    const Clock::time_point deadline = Clock::now() + request.header_timeout;
    const bool together = request.body.size() <= kOneWrite;
    const std::string first = together ? sending.head + request.body : sending.head;
    size_t written = co_await connection->write(first, request.idle_timeout, deadline);
    bool complete = written == first.size();
    if (complete && !together) {
      const size_t more = co_await connection->write(request.body, request.idle_timeout, deadline);
      complete = more == request.body.size();
    }
    // A server may refuse before it has read the whole body: its answer is looked for even when writing failed.
    const std::string write_failure = complete ? "" : connection->failure();
    std::string received;
    std::array<char, 4096> buffer;
    HeadScanner scanner(options_.max_header_bytes);
    for (int interim = 0;;) {
      const size_t size = scanner.scan(received);
      if (scanner.refusal()) bad_head(sending, scanner.refusal()->status);
      if (size > 0) {
        ReceivedHead head = parse_head_of(sending, std::string_view(received).substr(0, size));
        received.erase(0, size);
        if (head.status < 200) {
          if (++interim > kMaxInterim || head.status == 101) bad_head(sending, head.status);
          scanner = HeadScanner(options_.max_header_bytes);
          continue;
        }
        if (!complete) head.keep_alive = false;
        Attempt attempt;
        attempt.response = std::make_unique<ResponseImpl>(std::move(connection), pool_, sending.key, std::move(head),
                                                          std::move(received), request.idle_timeout);
        co_return attempt;
      }
      const size_t n = co_await connection->read(buffer, deadline);
      received.append(buffer.data(), n);
      if (n > 0) continue;
      const bool stale = reused && received.empty() && interim == 0 && !connection->timed_out() &&
                         !connection->cancelled() && (written == 0 || is_idempotent(request.method));
      if (stale) co_return Attempt{};
      no_answer(sending, *connection, write_failure);
    }
  }

  ReceivedHead parse_head_of(const Sending& sending, std::string_view block) const {
    try {
      return parse_response_head(block, sending.request.method);
    } catch (const Error& e) {
      throw ClientError(ClientFailure::kNotHttp, fmt::format("{}: {}", sending.url.authority, e.what()));
    }
  }
  [[noreturn]] void bad_head(const Sending& sending, int status) const {
    const std::string why = status == 431 ? fmt::format("its head is longer than {} bytes", options_.max_header_bytes)
                            : status < 200
                                ? std::string("it has too many interim answers, or changes the protocol")
                                : std::string("its head has a control character, or a line that does not end in CRLF");
    throw ClientError(ClientFailure::kNotHttp,
                      fmt::format("{}: the answer is not HTTP: {}", sending.url.authority, why));
  }
  [[noreturn]] void no_answer(const Sending& sending, const ClientConnection& connection,
                              const std::string& write_failure) const {
    const std::string& peer = sending.url.authority;
    if (connection.cancelled()) throw Error(Code::kCancelled, fmt::format("the request to {} was cancelled", peer));
    if (connection.timed_out())
      throw ClientError(ClientFailure::kTimeout,
                        fmt::format("{} did not answer within {} ms", peer, sending.request.header_timeout.count()));
    if (!write_failure.empty())
      throw ClientError(ClientFailure::kBroken, fmt::format("{} did not take the request: {}", peer, write_failure));
    throw ClientError(ClientFailure::kBroken, fmt::format("{} did not answer: {}", peer, connection.failure()));
  }

  const ClientOptions options_;
  std::shared_ptr<Pool> pool_ = std::make_shared<Pool>(options_);
  std::mutex tls_mutex_;
  std::unique_ptr<TlsClientContext> tls_;
};

}  // namespace

std::unique_ptr<Client> Client::create(ClientOptions options) {
  return std::make_unique<ClientImpl>(options);
}

void run_blocking(Task<void> task) {
  asio::io_context io(1);
  std::exception_ptr error;
  asio::co_spawn(io, std::move(task), [&](std::exception_ptr e) {
    error = e;
    io.stop();
  });
  io.run();
  if (error) std::rethrow_exception(error);
}

}  // namespace moectl::http
