// A byte stream to one peer, plain or TLS, so that the connection is one code path. Every call is made on the
// executor of its socket (the connection's strand). Knows nothing of HTTP.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/http/async.h"

namespace moectl::http {

using ReadDone = std::function<void(boost::system::error_code, size_t)>;

class Stream {
 public:
  virtual ~Stream() = default;
  virtual Task<boost::system::error_code> handshake() = 0;
  // At most one outstanding. `done` is called later on the executor, never from here.
  virtual void read_some(std::span<char> into, ReadDone done) = 0;
  virtual Task<size_t> read_some(std::span<char> into, boost::system::error_code& ec) = 0;
  // What the kernel takes at once; 0 when it would block or the stream cannot do that (TLS).
  virtual size_t try_write(std::string_view data, boost::system::error_code& ec) = 0;
  virtual Task<size_t> write_some(std::string_view data, boost::system::error_code& ec) = 0;
  // Tells the client that nothing more follows; reading goes on. Does not wait. `keep_alive` lives until it is done.
  virtual void shutdown_send(std::shared_ptr<void> keep_alive) = 0;
  virtual void close() = 0;  // pending operations end with an error
  // Takes the descriptor out of the stream, to be kept or moved to another executor; -1 when that cannot be done (TLS).
  // Nothing may be outstanding.
  virtual int release() { return -1; }
};

// The certificate and key of a server. Throws Error{kBadConfig} when they cannot be used.
class TlsContext {
 public:
  TlsContext(const std::string& certfile, const std::string& keyfile);
  ~TlsContext();
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// What a client trusts: the system's certificate authorities, or anybody.
class TlsClientContext {
 public:
  explicit TlsClientContext(bool verify);
  ~TlsClientContext();
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

std::unique_ptr<Stream> make_plain_stream(boost::asio::ip::tcp::socket socket);
std::unique_ptr<Stream> make_tls_stream(boost::asio::ip::tcp::socket socket, TlsContext& context);
// `host` is what the peer's certificate must name.
std::unique_ptr<Stream> make_tls_client_stream(boost::asio::ip::tcp::socket socket, TlsClientContext& context,
                                               const std::string& host);

}  // namespace moectl::http
