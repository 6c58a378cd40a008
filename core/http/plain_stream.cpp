#include "core/http/stream.h"

namespace moectl::http {
namespace {

namespace asio = boost::asio;

class PlainStream final : public Stream {
 public:
  explicit PlainStream(asio::ip::tcp::socket socket) : socket_(std::move(socket)) {
    boost::system::error_code ignored;
    socket_.non_blocking(true, ignored);
  }
  Task<boost::system::error_code> handshake() override { co_return boost::system::error_code{}; }
  void read_some(std::span<char> into, ReadDone done) override {
    socket_.async_read_some(asio::buffer(into.data(), into.size()), std::move(done));
  }
  Task<size_t> read_some(std::span<char> into, boost::system::error_code& ec) override {
    co_return co_await socket_.async_read_some(asio::buffer(into.data(), into.size()),
                                               asio::redirect_error(asio::use_awaitable, ec));
  }
  size_t try_write(std::string_view data, boost::system::error_code& ec) override {
    size_t n = socket_.write_some(asio::buffer(data), ec);
    if (ec == asio::error::would_block || ec == asio::error::try_again || ec == asio::error::interrupted) ec = {};
    return n;
  }
  Task<size_t> write_some(std::string_view data, boost::system::error_code& ec) override {
    co_return co_await socket_.async_write_some(asio::buffer(data), asio::redirect_error(asio::use_awaitable, ec));
  }
  void shutdown_send(std::shared_ptr<void>) override {
    boost::system::error_code ignored;
    socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  }
  void close() override {
    boost::system::error_code ignored;
    socket_.close(ignored);
  }
  int release() override {
    boost::system::error_code ec;
    const int fd = socket_.release(ec);
    return ec ? -1 : fd;
  }

 private:
  asio::ip::tcp::socket socket_;
};

}  // namespace

std::unique_ptr<Stream> make_plain_stream(asio::ip::tcp::socket socket) {
  return std::make_unique<PlainStream>(std::move(socket));
}

}  // namespace moectl::http
