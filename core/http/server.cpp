// Listener, registry of connections, life cycle. create/start/stop run on the owner's thread, the rest on the I/O
// threads.
#include "core/http/server.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/strand.hpp>
#include <condition_variable>
#include <thread>
#include <unordered_map>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/http/connection.h"
#include "core/http/descriptors.h"

namespace moectl::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

constexpr std::chrono::milliseconds kFirstBackoff{50}, kLongestBackoff{500};
constexpr std::chrono::seconds kHandlersAfterCut{10};
// A younger connection is not evicted: its request may be on the way.
constexpr std::chrono::seconds kIdleBeforeEviction{1};

// Every connection from accept to end. Any thread.
class Registry {
 public:
  void add(const std::shared_ptr<Connection>& connection) {
    std::lock_guard lock(mutex_);
    connections_.emplace(connection.get(), connection);
  }
  void remove(Connection* connection) {
    std::shared_ptr<Connection> last;  // destroyed outside the lock
    std::lock_guard lock(mutex_);
    if (auto it = connections_.find(connection); it != connections_.end()) {
      last = std::move(it->second);
      connections_.erase(it);
    }
    changed_.notify_all();
  }
  size_t size() const {
    std::lock_guard lock(mutex_);
    return connections_.size();
  }
  void for_each(void (Connection::*method)()) {
    std::lock_guard lock(mutex_);
    for (auto& [key, connection] : connections_) (connection.get()->*method)();
  }
  // Asks the `count` longest idle connections to close; returns how many there were.
  size_t evict_idle(size_t count) {
    const Clock::rep youngest = (Clock::now() - kIdleBeforeEviction).time_since_epoch().count();
    std::lock_guard lock(mutex_);
    std::vector<std::pair<Clock::rep, Connection*>> idle;
    for (auto& [key, connection] : connections_)
      if (Clock::rep since = connection->idle_since(); since != 0 && since <= youngest) idle.emplace_back(since, key);
    count = std::min(count, idle.size());
    std::partial_sort(idle.begin(), idle.begin() + ptrdiff_t(count), idle.end());
    for (size_t i = 0; i < count; ++i) idle[i].second->close_if_idle();
    return count;
  }
  bool wait_empty(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, [&] { return connections_.empty(); });
  }
  void clear() {
    std::unordered_map<Connection*, std::shared_ptr<Connection>> all;
    std::lock_guard lock(mutex_);
    all.swap(connections_);
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections_;
};

class ServerImpl final : public Server {
 public:
  ServerImpl(ServerOptions options, ErrorResponder on_error)
      : accept_strand_(asio::make_strand(io_)), acceptor_(accept_strand_), accept_timer_(accept_strand_) {
    context_.options = std::move(options);
    context_.on_error = std::move(on_error);
    context_.on_closed = [this](Connection* connection) { on_closed(connection); };
    const ServerOptions& o = context_.options;
    if (o.ssl_certfile.empty() != o.ssl_keyfile.empty())
      throw Error(Code::kBadConfig, "--ssl-certfile and --ssl-keyfile must be given together");
    if (!o.ssl_certfile.empty()) tls_ = std::make_unique<TlsContext>(o.ssl_certfile, o.ssl_keyfile);
    bind();
    limit_to_descriptors();
  }
  ~ServerImpl() override { stop(std::chrono::milliseconds(0)); }

  void route(std::string method, std::string path, Handler handler) override {
    CHECK(threads_.empty(), "route() after start()");
    context_.routes.add(std::move(method), std::move(path), std::move(handler));
  }
  void set_gate(std::function<std::optional<Response>(const Request&)> gate) override {
    CHECK(threads_.empty(), "set_gate() after start()");
    context_.gate = std::move(gate);
  }
  void start(int num_threads) override;
  uint16_t port() const override { return port_; }
  void stop(std::chrono::milliseconds grace) override;
  size_t open_exchanges() const override { return context_.open_exchanges; }

 private:
  void bind();
  void limit_to_descriptors();
  Task<void> accept_loop();
  Task<void> accept_connections();
  Task<bool> wait_for_slot();
  Task<void> back_off(std::chrono::milliseconds duration);
  void on_closed(Connection* connection);
  void begin(tcp::socket socket);

  // Destroyed last to first: coroutines that are still suspended go with io_, and refer to what stands above it.
  ServerContext context_;
  std::unique_ptr<TlsContext> tls_;
  asio::io_context io_;
  Registry registry_;
  asio::any_io_executor accept_strand_;
  tcp::acceptor acceptor_;
  asio::steady_timer accept_timer_;
  bool waiting_for_slot_ = false;  // on accept_strand_
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work_;
  std::vector<std::thread> threads_;
  uint16_t port_ = 0;
};

void ServerImpl::bind() {
  const ServerOptions& o = context_.options;
  boost::system::error_code ec;
  tcp::resolver resolver(io_);
  auto found =
      resolver.resolve(o.host, std::to_string(o.port), tcp::resolver::passive | tcp::resolver::numeric_service, ec);
  if (ec || found.empty())
    throw Error(Code::kInvalidArgument,
                fmt::format("--host {}: not an address or a known name ({}); use 127.0.0.1 for this machine only, "
                            "0.0.0.0 for every network",
                            o.host, ec.message()));
  // "localhost" may be both ::1 and 127.0.0.1: take IPv4, which every client tries.
  tcp::endpoint endpoint = found.begin()->endpoint();
  for (const auto& entry : found)
    if (entry.endpoint().address().is_v4()) {
      endpoint = entry.endpoint();
      break;
    }
  acceptor_.open(endpoint.protocol(), ec);
  if (!ec) acceptor_.set_option(tcp::acceptor::reuse_address(true), ec);
  if (!ec) acceptor_.bind(endpoint, ec);
  if (!ec) acceptor_.listen(asio::socket_base::max_listen_connections, ec);
  if (ec == asio::error::address_in_use)
    throw Error(Code::kResourceExhausted,
                fmt::format("port {} on {} is in use by another process; stop it or choose another with --port "
                            "(0 picks a free one)",
                            o.port, o.host));
  if (ec == asio::error::access_denied)
    throw Error(Code::kInvalidArgument,
                fmt::format("no permission to listen on port {} of {}; ports below 1024 need privileges, choose "
                            "another with --port",
                            o.port, o.host));
  if (ec)
    throw Error(Code::kInvalidArgument,
                fmt::format("cannot listen on port {} of {} ({}); --host must be an address of this machine", o.port,
                            o.host, ec.message()));
  port_ = acceptor_.local_endpoint().port();
}

// A server that fills the descriptor table would starve the rest of the process, the operations port first.
void ServerImpl::limit_to_descriptors() {
  ServerOptions& o = context_.options;
  if (o.is_ops) {
    o.max_connections = std::min(o.max_connections, kMaxOpsConnections);
    return;
  }
  const DescriptorPlan plan = plan_descriptors(descriptor_limit(), o.descriptors_per_connection);
  if (o.max_connections <= plan.max_connections) return;
  log::warn(
      "http {}: at most {} connections instead of {}: the process may open {} files (ulimit -n), a connection takes {} "
      "of them, and {} are reserved",
      o.name, plan.max_connections, o.max_connections, plan.limit, o.descriptors_per_connection, plan.reserve);
  o.max_connections = plan.max_connections;
}

void ServerImpl::start(int num_threads) {
  CHECK(threads_.empty() && !context_.draining, "start() after start() or stop()");
  CHECK(num_threads >= 1, "{} I/O threads", num_threads);
  work_.emplace(io_.get_executor());
  asio::co_spawn(
      accept_strand_, [this] { return accept_loop(); }, asio::detached);
  for (int i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this] {
      for (;;) {
        try {
          io_.run();
          return;
        } catch (const std::exception& e) {
          log::error("http {}: an I/O callback failed: {}", context_.options.name, e.what());
        }
      }
    });
  }
}

Task<void> ServerImpl::accept_loop() {
  while (!context_.draining) {
    try {
      co_await accept_connections();
    } catch (const std::exception& e) {
      log::error("http {}: the listener failed and goes on: {}", context_.options.name, e.what());
    }
    if (!context_.draining) co_await back_off(kLongestBackoff);
  }
}

Task<void> ServerImpl::accept_connections() {
  std::chrono::milliseconds backoff = kFirstBackoff;
  for (;;) {
    bool slot = co_await wait_for_slot();
    if (!slot) break;
    boost::system::error_code ec;
    // accept() wants a descriptor before it looks for a client: asked only when one waits, or EMFILE would evict an
    // idle connection for no client.
    co_await acceptor_.async_wait(tcp::acceptor::wait_read, asio::redirect_error(asio::use_awaitable, ec));
    if (context_.draining || !acceptor_.is_open()) break;
    asio::any_io_executor strand = asio::make_strand(io_);
    tcp::socket socket = co_await acceptor_.async_accept(strand, asio::redirect_error(asio::use_awaitable, ec));
    if (context_.draining || !acceptor_.is_open()) break;
    if (!ec) {
      backoff = kFirstBackoff;
      try {
        begin(std::move(socket));
      } catch (const std::exception& e) {
        log::error("http {}: a new connection was dropped: {}", context_.options.name, e.what());
      }
      continue;
    }
    if (!is_out_of_descriptors(ec.value())) {  // the client left between SYN and accept, or the like
      log::debug("http {}: accept: {}", context_.options.name, ec.message());
      if (ec != asio::error::connection_aborted) co_await back_off(kFirstBackoff);
      continue;
    }
    size_t evicted = registry_.evict_idle(16);
    log::warn("http {}: accept: {}; {} idle connections closed, next try in {} ms", context_.options.name, ec.message(),
              evicted, backoff.count());
    co_await back_off(backoff);
    backoff = std::min(backoff * 2, kLongestBackoff);
  }
}

// At the cap the longest idle connection makes room; when all are busy, clients wait in the kernel's backlog.
Task<bool> ServerImpl::wait_for_slot() {
  std::chrono::milliseconds backoff = kFirstBackoff;
  while (!context_.draining && registry_.size() >= context_.options.max_connections) {
    registry_.evict_idle(1);
    co_await back_off(backoff);  // ended at once by on_closed
    backoff = std::min(backoff * 2, kLongestBackoff);
  }
  co_return !context_.draining;
}

Task<void> ServerImpl::back_off(std::chrono::milliseconds duration) {
  boost::system::error_code ec;
  accept_timer_.expires_after(duration);
  waiting_for_slot_ = true;
  co_await accept_timer_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  waiting_for_slot_ = false;
}

void ServerImpl::on_closed(Connection* connection) {
  // Posted before the removal: once the registry is empty, stop() may end the loop.
  bool full = registry_.size() >= context_.options.max_connections;
  registry_.remove(connection);
  if (full)
    asio::post(accept_strand_, [this] {
      if (waiting_for_slot_) accept_timer_.cancel();
    });
}

void ServerImpl::begin(tcp::socket socket) {
  boost::system::error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  tcp::endpoint remote = socket.remote_endpoint(ignored);
  std::string host = remote.address().to_string();
  if (remote.address().is_v6()) host = "[" + host + "]";
  std::string peer = fmt::format("{}:{}", host, remote.port());
  asio::any_io_executor strand = socket.get_executor();
  std::unique_ptr<Stream> stream =
      tls_ ? make_tls_stream(std::move(socket), *tls_) : make_plain_stream(std::move(socket));
  auto connection = std::make_shared<Connection>(std::move(stream), strand, std::move(peer), context_);
  registry_.add(connection);
  asio::co_spawn(
      strand, [connection] { return connection->run(); }, asio::detached);
}

void ServerImpl::stop(std::chrono::milliseconds grace) {
  for (const std::thread& t : threads_) CHECK(t.get_id() != std::this_thread::get_id(), "stop() from an I/O thread");
  context_.draining = true;
  if (!threads_.empty()) {
    asio::post(accept_strand_, [this] {
      boost::system::error_code ignored;
      acceptor_.close(ignored);
      accept_timer_.cancel();
    });
    registry_.for_each(&Connection::close_if_idle);
    bool clean = registry_.wait_empty(grace);
    if (!clean) {
      registry_.for_each(&Connection::cut);
      clean = registry_.wait_empty(kHandlersAfterCut);
      if (!clean)
        log::error("http {}: {} handlers still run after their connections were cut; they are dropped",
                   context_.options.name, registry_.size());
    }
    work_.reset();
    io_.stop();
    for (std::thread& t : threads_) t.join();
    threads_.clear();
  }
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  registry_.clear();
}

}  // namespace

std::unique_ptr<Server> Server::create(ServerOptions options, ErrorResponder on_error) {
  CHECK(on_error, "a server needs an error responder");
  return std::make_unique<ServerImpl>(std::move(options), std::move(on_error));
}

}  // namespace moectl::http
