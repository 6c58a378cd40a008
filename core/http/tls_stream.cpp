// TLS by OpenSSL through Asio: 1.2 and later, no renegotiation. The only file that includes OpenSSL.
#include <boost/asio/ssl.hpp>

#include "core/base/error.h"
#include "core/http/stream.h"

namespace moectl::http {

namespace asio = boost::asio;

struct TlsContext::Impl {
  asio::ssl::context context{asio::ssl::context::tls_server};
};

TlsContext::TlsContext(const std::string& certfile, const std::string& keyfile) : impl_(std::make_unique<Impl>()) {
  asio::ssl::context& context = impl_->context;
  context.set_options(asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1 | SSL_OP_NO_RENEGOTIATION |
                      SSL_OP_NO_COMPRESSION);
  boost::system::error_code ec;
  context.use_certificate_chain_file(certfile, ec);
  if (ec)
    throw Error(Code::kBadConfig,
                fmt::format("--ssl-certfile {}: not a readable PEM certificate chain ({})", certfile, ec.message()));
  context.use_private_key_file(keyfile, asio::ssl::context::pem, ec);
  if (ec)
    throw Error(Code::kBadConfig,
                fmt::format("--ssl-keyfile {}: not a readable PEM private key of the certificate {} ({})", keyfile,
                            certfile, ec.message()));
  if (SSL_CTX_check_private_key(context.native_handle()) != 1)
    throw Error(Code::kBadConfig,
                fmt::format("--ssl-keyfile {}: does not belong to the certificate {}", keyfile, certfile));
}
TlsContext::~TlsContext() = default;

namespace {

class TlsStream final : public Stream {
 public:
  TlsStream(asio::ip::tcp::socket socket, asio::ssl::context& context) : stream_(std::move(socket), context) {}
  Task<boost::system::error_code> handshake() override {
    boost::system::error_code ec;
    co_await stream_.async_handshake(asio::ssl::stream_base::server, asio::redirect_error(asio::use_awaitable, ec));
    co_return ec;
  }
  void read_some(std::span<char> into, ReadDone done) override {
    stream_.async_read_some(asio::buffer(into.data(), into.size()), std::move(done));
  }
  size_t try_write(std::string_view, boost::system::error_code& ec) override {
    ec = {};
    return 0;
  }
  Task<size_t> write_some(std::string_view data, boost::system::error_code& ec) override {
    co_return co_await stream_.async_write_some(asio::buffer(data), asio::redirect_error(asio::use_awaitable, ec));
  }
  void shutdown_send(std::shared_ptr<void> keep_alive) override {
    stream_.async_shutdown([alive = std::move(keep_alive)](boost::system::error_code) {});
  }
  void close() override {
    boost::system::error_code ignored;
    stream_.lowest_layer().close(ignored);
  }

 private:
  asio::ssl::stream<asio::ip::tcp::socket> stream_;
};

}  // namespace

std::unique_ptr<Stream> make_tls_stream(asio::ip::tcp::socket socket, TlsContext& context) {
  return std::make_unique<TlsStream>(std::move(socket), context.impl().context);
}

}  // namespace moectl::http
