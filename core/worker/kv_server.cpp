#include "core/worker/kv_server.h"

#include <atomic>
#include <list>
#include <mutex>
#include <thread>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/worker/kv_server_connection.h"

namespace moectl {

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
  std::list<Peer> peers;  // the accepting thread's; stop() takes them when it has ended
  std::thread acceptor;

  explicit Impl(KvServerOptions options) : listener(options.host, options.port) {
    context.options = std::move(options);
  }

  void accept_loop() {
    while (!stopping) {
      try {
        std::unique_ptr<TcpChannel> channel = listener.accept(wake);
        if (stopping) return;
        if (channel)
          admit(std::move(channel));
        else
          wake.reset();
        reap();
      } catch (const std::exception& e) {
        log::error("kv: accepting a connection failed: {}", e.what());
      }
    }
  }

  void admit(std::unique_ptr<TcpChannel> channel) {
    if (context.num_strangers >= context.options.max_strangers) {
      ++context.num_refused_peers;
      log::warn("kv: connection from {} refused: {} others are in their handshake", channel->peer(),
                context.num_strangers.load());
      return;
    }
    Peer& peer = peers.emplace_back(std::move(channel), context);
    ++context.num_strangers;
    try {
      peer.thread = std::thread([this, &peer] {
        peer.connection.run();
        peer.over = true;
        wake.wake();
      });
    } catch (const std::exception&) {  // no thread to be had
      --context.num_strangers;
      peers.pop_back();
      throw;
    }
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
