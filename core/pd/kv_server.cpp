#include "core/pd/kv_server.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/pd/kv_server_connection.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kEvictionLogInterval{10};  // whoever floods the port must not flood the log

}  // namespace

struct KvServer::Impl {
  // A connection and its thread; `over` is set by the thread's last act.
  struct Peer {
    KvServerConnection connection;
    std::atomic<bool> over{false};
    std::thread thread;
    Peer(std::unique_ptr<TcpChannel> channel, KvServerContext& context) : connection(std::move(channel), context) {}
  };

  KvServerContext context;
  Waker wake;  // the accepting thread: a connection is over, or stop()
  TcpListener listener;
  std::atomic<bool> stopping{false};
  std::mutex stop_mutex;
  std::list<Peer> peers;    // oldest first. The accepting thread's; stop() takes them when it has ended
  int64_t num_evicted = 0;  // the accepting thread's, like the next
  Clock::time_point next_eviction_log{};
  std::thread acceptor;

  explicit Impl(KvServerOptions options) : listener(options.host, options.port) {
    context.options = std::move(options);
  }

  void accept_loop() {
    while (!stopping) {
      try {
        std::unique_ptr<TcpChannel> channel = listener.accept(wake);
        if (stopping) return;
        if (!channel) wake.reset();
        reap();
        if (channel) admit(std::move(channel));
      } catch (const std::exception& e) {
        log::error("kv: accepting a connection failed: {}", e.what());
      }
    }
  }

  void admit(std::unique_ptr<TcpChannel> channel) {
    make_room();
    Peer& peer = peers.emplace_back(std::move(channel), context);
    try {
      peer.thread = std::thread([this, &peer] {
        peer.connection.run();
        peer.over = true;
        wake.wake();
      });
    } catch (const std::exception&) {  // no thread to be had
      peers.pop_back();
      throw;
    }
  }

  // Evicts the oldest unauthenticated peers until one more fits. An evicted peer's thread ends at once, so joining it
  // here bounds the threads as well.
  void make_room() {
    int64_t num =
        std::count_if(peers.begin(), peers.end(), [](const Peer& p) { return !p.connection.is_authenticated(); });
    for (auto peer = peers.begin(); peer != peers.end() && num >= context.options.max_unauthenticated;) {
      if (peer->connection.is_authenticated() || !peer->connection.evict()) {
        ++peer;
        continue;
      }
      peer->thread.join();
      peer = peers.erase(peer);
      --num;
      ++num_evicted;
    }
    if (num_evicted == 0 || Clock::now() < next_eviction_log) return;
    next_eviction_log = Clock::now() + kEvictionLogInterval;
    log::warn("kv: {} connections were closed during their handshake because over {} at once had not authenticated",
              std::exchange(num_evicted, 0), context.options.max_unauthenticated);
  }

  void reap() {
    peers.remove_if([](Peer& peer) {
      if (!peer.over) return false;
      peer.thread.join();
      return true;
    });
  }
};

KvServer::KvServer(KvProducer producer, KvServerOptions options) {
  if (options.secret.empty())
    throw Error(Code::kBadConfig, "a prefill worker needs the cluster's secret (--cluster-secret-file)");
  impl_ = std::make_unique<Impl>(std::move(options));
  impl_->context.layout = producer.layout();
  impl_->context.pools = producer.pools();
  impl_->context.producer = std::move(producer);
  impl_->acceptor = std::thread([impl = impl_.get()] { impl->accept_loop(); });
}

KvServer::~KvServer() {
  stop();
}

uint16_t KvServer::port() const {
  return impl_->listener.port();
}

void KvServer::stop() {
  std::lock_guard lock(impl_->stop_mutex);
  impl_->stopping = true;
  impl_->wake.wake();
  if (impl_->acceptor.joinable()) impl_->acceptor.join();
  for (Impl::Peer& peer : impl_->peers) peer.connection.close();
  for (Impl::Peer& peer : impl_->peers) peer.thread.join();
  impl_->peers.clear();
}

KvServerStats KvServer::stats() const {
  const KvServerContext& c = impl_->context;
  return {.num_connections = c.num_connections,
          .num_active = c.num_active,
          .num_done = c.num_done,
          .num_failed = c.num_failed,
          .num_cancelled = c.num_cancelled,
          .num_refused_peers = c.num_refused_peers,
          .num_bytes = c.num_bytes};
}

}  // namespace moectl
