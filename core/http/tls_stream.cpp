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

struct TlsClientContext::Impl {
  asio::ssl::context context{asio::ssl::context::tls_client};
};

TlsClientContext::TlsClientContext(bool verify) : impl_(std::make_unique<Impl>()) {
  asio::ssl::context& context = impl_->context;
  context.set_options(asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1 | SSL_OP_NO_COMPRESSION);
  boost::system::error_code ignored;  // without authorities every handshake fails, which says enough
  context.set_default_verify_paths(ignored);
  context.set_verify_mode(verify ? asio::ssl::verify_peer : asio::ssl::verify_none);
}
TlsClientContext::~TlsClientContext() = default;

namespace {

class TlsStream final : public Stream {
 public:
  TlsStream(asio::ip::tcp::socket socket, asio::ssl::context& context, asio::ssl::stream_base::handshake_type side)
      : stream_(std::move(socket), context), side_(side) {}
  // Of a client, before the handshake: the name to ask for and to find in the certificate.
  void expect_host(const std::string& host) {
    boost::system::error_code not_an_address;
    asio::ip::make_address(host, not_an_address);
    if (not_an_address) SSL_set_tlsext_host_name(stream_.native_handle(), host.c_str());
    boost::system::error_code ignored;
    stream_.set_verify_callback(asio::ssl::host_name_verification(host), ignored);
  }
  Task<boost::system::error_code> handshake() override {
    boost::system::error_code ec;
    co_await stream_.async_handshake(side_, asio::redirect_error(asio::use_awaitable, ec));
    co_return ec;
  }
  void read_some(std::span<char> into, ReadDone done) override {
    stream_.async_read_some(asio::buffer(into.data(), into.size()), std::move(done));
  }
  Task<size_t> read_some(std::span<char> into, boost::system::error_code& ec) override {
    co_return co_await stream_.async_read_some(asio::buffer(into.data(), into.size()),
                                               asio::redirect_error(asio::use_awaitable, ec));
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
  asio::ssl::stream_base::handshake_type side_;
};

}  // namespace

std::unique_ptr<Stream> make_tls_stream(asio::ip::tcp::socket socket, TlsContext& context) {
  return std::make_unique<TlsStream>(std::move(socket), context.impl().context, asio::ssl::stream_base::server);
}

std::unique_ptr<Stream> make_tls_client_stream(asio::ip::tcp::socket socket, TlsClientContext& context,
                                               const std::string& host) {
  auto stream = std::make_unique<TlsStream>(std::move(socket), context.impl().context, asio::ssl::stream_base::client);
  stream->expect_host(host);
  return stream;
}

}  // namespace moectl::http
