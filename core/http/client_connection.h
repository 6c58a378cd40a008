// One connection of the client: connect, write and read, each with a deadline. Everything runs on the executor it was
// made for, which must run one thing at a time; one operation is outstanding at most. Knows nothing of messages.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/http/client_message.h"
#include "core/http/stream.h"

namespace moectl::http {

// A descriptor between two uses: it belongs to no executor.
struct IdleDescriptor {
  int fd = -1;
  bool v6 = false;
  Clock::time_point since;
};

class ClientConnection : public std::enable_shared_from_this<ClientConnection> {
 public:
  explicit ClientConnection(boost::asio::any_io_executor executor) : executor_(executor), timer_(executor) {}
  ~ClientConnection() { close(); }
  ClientConnection(const ClientConnection&) = delete;

  // Throws ClientError "cannot connect to ...", and Error{kResourceExhausted} when this process is out of file
  // descriptors. `tls` is null for http.
  Task<void> connect(Url url, std::chrono::milliseconds timeout, TlsClientContext* tls);
  void adopt(const IdleDescriptor& idle);
  // False, with nothing left outstanding, when it cannot be kept.
  bool release(IdleDescriptor& idle);

  // Writes all of it unless the peer stops taking bytes for `stall` or `end` passes; returns what was written.
  Task<size_t> write(std::string_view data, std::chrono::milliseconds stall, Clock::time_point end);
  // At least one byte; 0: nothing more comes, see ended() and failure().
  Task<size_t> read(std::span<char> into, Clock::time_point deadline);

  bool ended() const { return error_ == boost::asio::error::eof; }  // the peer closed in order
  std::string failure() const;  // why the last operation did not succeed: "no answer in time", "reset" ...
  void cancel() {
    cancelled_ = true;
    close();
  }
  bool cancelled() const { return cancelled_; }
  bool timed_out() const { return timed_out_; }
  void close();

 private:
  Task<void> connect_to(boost::asio::ip::tcp::endpoint endpoint, Clock::time_point deadline);
  void arm(Clock::time_point deadline);
  void disarm() { armed_ = false; }
  void run_timer();

  boost::asio::any_io_executor executor_;
  std::unique_ptr<boost::asio::ip::tcp::socket> connecting_;
  std::unique_ptr<Stream> stream_;
  bool v6_ = false;
  // One timer closes the socket under whatever does not get on. It is left running between operations, so that reading
  // a stream of small pieces costs no timer operations.
  boost::asio::steady_timer timer_;
  Clock::time_point deadline_;
  bool armed_ = false, timer_running_ = false;
  bool timed_out_ = false, cancelled_ = false, closed_ = false;
  boost::system::error_code error_;
};

// "refused" for what the system calls "Connection refused", and the like.
std::string plain_words(const boost::system::error_code& ec);

}  // namespace moectl::http
