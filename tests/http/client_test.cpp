// The HTTP client against our own server in this process, and against servers that break every rule.
#include "core/http/client.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <future>
#include <thread>

#include "core/base/error.h"
#include "core/http/client_message.h"
#include "core/http/descriptors.h"
#include "core/http/server.h"
#include "core/http/spawn.h"

namespace moectl::http {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

// ------------------------------------------------------------------------------------------------ servers

Response plain_error(const Request&, int status, std::string_view message, std::exception_ptr) {
  return {.status = status, .content_type = "text/plain", .body = std::string(message)};
}

std::unique_ptr<Server> make_server(ServerOptions options = {}) {
  auto server = Server::create(std::move(options), plain_error);
  server->route("POST", "/echo", [](Exchange& exchange) -> Task<void> {
    Response response;
    response.body = exchange.request().body;
    response.headers.emplace_back("x-query", exchange.request().query);
    response.headers.emplace_back("x-peer", exchange.request().peer);
    co_await exchange.respond(std::move(response));
  });
  server->route("GET", "/hello", [](Exchange& exchange) -> Task<void> {
    Response response;
    response.body = "hello";
    response.headers.emplace_back("x-peer", exchange.request().peer);
    co_await exchange.respond(std::move(response));
  });
  server->route("GET", "/stream", [](Exchange& exchange) -> Task<void> {
    co_await exchange.start_stream();
    for (int i = 0; i < 100; ++i) co_await exchange.write(std::string(size_t(i) * 100 + 1, char('a' + i % 26)));
    co_await exchange.finish();
  });
  server->route("GET", "/cut", [](Exchange& exchange) -> Task<void> {
    co_await exchange.start_stream();
    co_await exchange.write("half");
    exchange.abort();
  });
  return server;
}

// Accepts connections one after another and lets `behave` do with each what it wants. Ends when it is destroyed.
class RawServer {
 public:
  explicit RawServer(std::function<void(int)> behave) : behave_(std::move(behave)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener_, 16), 0);
    EXPECT_EQ(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      for (;;) {
        const int fd = ::accept(listener_, nullptr, nullptr);
        if (fd < 0) return;
        behave_(fd);
        ::close(fd);
      }
    });
  }
  ~RawServer() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }
  std::string url(std::string_view path = "/") const { return fmt::format("http://127.0.0.1:{}{}", port_, path); }

 private:
  std::function<void(int)> behave_;
  int listener_ = -1;
  uint16_t port_ = 0;
  std::thread thread_;
};

// Reads until the blank line of a request head (bodies of these tests fit in the same read or are not looked at).
std::string read_request(int fd) {
  std::string text;
  char buffer[4096];
  while (text.find("\r\n\r\n") == std::string::npos) {
    const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
    if (n <= 0) break;
    text.append(buffer, size_t(n));
  }
  return text;
}
// False when the peer has gone.
bool send_text(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    text.remove_prefix(size_t(n));
  }
  return true;
}
void wait_for_close(int fd) {
  static thread_local char buffer[64 << 10];
  while (::recv(fd, buffer, sizeof buffer, 0) > 0) {
  }
}

// ------------------------------------------------------------------------------------------------ calls

struct Answer {
  int status = 0;
  std::string body, peer;
};

ClientRequest get(std::string url) {
  ClientRequest request;
  request.url = std::move(url);
  return request;
}

Answer call(Client& client, ClientRequest request, size_t max_bytes = 64 << 20) {
  Answer answer;
  auto task = [](Client& c, ClientRequest r, size_t max, Answer& a) -> Task<void> {
    std::unique_ptr<ClientResponse> response = co_await c.send(std::move(r));
    a.status = response->status();
    a.peer = response->header("x-peer");
    a.body = co_await response->read_all(max);
  };
  run_blocking(task(client, std::move(request), max_bytes, answer));
  return answer;
}

// The error that a call ends with.
struct Failed : Error {
  explicit Failed(const Error& error, std::optional<ClientFailure> failure = {}) : Error(error), why(failure) {}
  std::optional<ClientFailure> why;  // of a ClientError
};

Failed failure_of(ClientRequest request, ClientOptions options = {}, size_t max_bytes = 64 << 20) {
  const auto client = Client::create(options);
  try {
    const Answer answer = call(*client, std::move(request), max_bytes);
    return Failed(
        Error(Code::kInternal, fmt::format("no error but {} and {} bytes", answer.status, answer.body.size())));
  } catch (const ClientError& e) {
    return Failed(e, e.failure());
  } catch (const Error& e) {
    return Failed(e);
  }
}

Failed failure_against(std::string_view answer, size_t max_bytes = 64 << 20) {
  RawServer server([answer](int fd) {
    read_request(fd);
    send_text(fd, answer);
  });
  return failure_of(get(server.url()), {}, max_bytes);
}

void expect_error(const Error& error, Code code, std::string_view text) {
  EXPECT_EQ(int(error.code()), int(code)) << error.what();
  EXPECT_THAT(error.what(), HasSubstr(std::string(text)));
}

void expect_failure(const Failed& error, ClientFailure why, std::string_view text) {
  expect_error(error, Code::kUnavailable, text);
  EXPECT_TRUE(error.why == why) << error.what();
}

// ------------------------------------------------------------------------------------------------ URLs and heads

TEST(ParseUrl, SplitsItsParts) {
  const Url url = parse_url("http://example.org:8000/v1/models?limit=2#top");
  EXPECT_EQ(url.host, "example.org");
  EXPECT_EQ(url.port, 8000);
  EXPECT_EQ(url.authority, "example.org:8000");
  EXPECT_EQ(url.target, "/v1/models?limit=2");
  EXPECT_FALSE(url.tls);
  EXPECT_EQ(parse_url("HTTPS://host").port, 443);
  EXPECT_TRUE(parse_url("https://host").tls);
  EXPECT_EQ(parse_url("http://host?q").target, "/?q");
  EXPECT_EQ(parse_url("http://[::1]:81/x").host, "::1");
  EXPECT_EQ(parse_url("http://[::1]:81/x").authority, "[::1]:81");
}

TEST(ParseUrl, RefusesWhatItCannotCall) {
  for (const char* text : {"", "host:80", "ftp://host/", "http://", "http:///path", "http://host:0/",
                           "http://host:70000/", "http://host:8x/", "http://user:secret@host/", "http://ho st/",
                           "http://host/\r\nX: y", "http://[::1/", "http://h\xc3\xa4st/", "http:host"}) {
    try {
      parse_url(text);
      ADD_FAILURE() << text;
    } catch (const Error& e) {
      EXPECT_EQ(int(e.code()), int(Code::kInvalidArgument)) << text;
    }
  }
  EXPECT_THROW(parse_url("http://host/" + std::string(9000, 'a')), Error);
}

TEST(RequestHead, RefusesHeadersThatWouldSmuggle) {
  const Url url = parse_url("http://host/");
  EXPECT_THROW(format_request_head("GET", url, {{"x", "a\r\nY: b"}}, 0), Error);
  EXPECT_THROW(format_request_head("GET", url, {{"x: y\r\nz", "a"}}, 0), Error);
  EXPECT_THROW(format_request_head("GET", url, {{"", "a"}}, 0), Error);
  EXPECT_THROW(format_request_head("GE T", url, {}, 0), Error);
  for (const char* own : {"Host", "content-length", "Connection", "Transfer-Encoding"})
    EXPECT_THROW(format_request_head("GET", url, {{own, "1"}}, 0), Error) << own;
  EXPECT_EQ(format_request_head("POST", url, {{"X-A", "b"}}, 3),
            "POST / HTTP/1.1\r\nHost: host\r\nX-A: b\r\nContent-Length: 3\r\n\r\n");
}

// ------------------------------------------------------------------------------------------------ descriptors

// While it lives, this process cannot open another file.
class NoDescriptors {
 public:
  NoDescriptors() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &before_), 0);
    const int lowest_free = ::open("/dev/null", O_RDONLY);
    ::close(lowest_free);
    rlimit tight = before_;
    tight.rlim_cur = rlim_t(lowest_free);
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  }
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

TEST(Descriptors, ThePlanFitsIntoTheLimit) {
  for (const size_t limit : {8u, 64u, 256u, 1024u, 4096u, 65536u, 1048576u})
    for (const size_t each : {1u, 2u}) {
      const DescriptorPlan plan = plan_descriptors(limit, each);
      EXPECT_LE(plan.max_connections * each + plan.reserve, limit) << limit;
      EXPECT_LE(plan.max_idle_clients, plan.reserve) << limit;
      EXPECT_GE(plan.max_connections, 1u) << limit;
    }
  EXPECT_EQ(plan_descriptors(256, 2).max_connections, 96u);
  EXPECT_GE(plan_descriptors(4096, 1).max_connections, 3000u);
}

// UBSan opens a pipe to look whether an object can be read, and takes it for none where there is no descriptor.
#ifdef __SANITIZE_ADDRESS__
#define SKIP_UNDER_SANITIZERS() GTEST_SKIP() << "the undefined-behavior sanitizer needs a descriptor itself"
#else
#define SKIP_UNDER_SANITIZERS() static_cast<void>(0)
#endif

TEST(Descriptors, OurOwnShortageIsNotThePeersFault) {
  SKIP_UNDER_SANITIZERS();
  const auto server = make_server();
  server->start();
  ClientOptions options;
  options.max_idle_per_host = 0;
  const auto client = Client::create(options);
  std::vector<Error> errors;
  auto task = [](Client& c, uint16_t port, std::vector<Error>& caught) -> Task<void> {
    ClientRequest good =
        get(fmt::format("http://127.0.0.1:{}/hello", port));  // the event loop has its descriptors then
    auto response = co_await c.send(std::move(good));
    co_await response->read_all();
    response.reset();
    const NoDescriptors none;
    for (const char* host : {"127.0.0.1", "localhost"}) {
      ClientRequest request = get(fmt::format("http://{}:{}/hello", host, port));
      try {
        co_await c.send(std::move(request));
      } catch (const Error& e) {
        caught.push_back(e);
      }
    }
  };
  run_blocking(task(*client, server->port(), errors));
  ASSERT_EQ(errors.size(), 2u);
  for (const Error& error : errors)
    expect_error(error, Code::kResourceExhausted, "this process has no free file descriptor (ulimit -n ");
}

TEST(Descriptors, IdleConnectionsGiveWay) {
  SKIP_UNDER_SANITIZERS();
  const auto first = make_server(), second = make_server();
  first->start();
  second->start();
  const auto client = Client::create();
  std::string body;
  auto task = [](Client& c, uint16_t kept, uint16_t fresh, std::string& text) -> Task<void> {
    ClientRequest request = get(fmt::format("http://127.0.0.1:{}/hello", kept));
    auto response = co_await c.send(std::move(request));
    co_await response->read_all();
    response.reset();
    const NoDescriptors none;  // but those of the kept connection
    ClientRequest other = get(fmt::format("http://127.0.0.1:{}/hello", fresh));
    response = co_await c.send(std::move(other));
    text = co_await response->read_all();
  };
  run_blocking(task(*client, first->port(), second->port(), body));
  EXPECT_EQ(body, "hello");
}

TEST(Descriptors, KeptConnectionsAreBoundedOverAllHosts) {
  ClientOptions options;
  options.max_idle_total = 1;
  const auto client = Client::create(options);
  const auto first = make_server(), second = make_server();
  first->start();
  second->start();
  const auto peer_of = [&](const Server& server) {
    return call(*client, get(fmt::format("http://127.0.0.1:{}/hello", server.port()))).peer;
  };
  const std::string one = peer_of(*first), other = peer_of(*second);
  EXPECT_EQ(peer_of(*second), other) << "the last one used is kept";
  EXPECT_NE(peer_of(*first), one) << "the one before had to go";
}

// ------------------------------------------------------------------------------------------------ a good server

class ClientTest : public testing::Test {
 protected:
  void SetUp() override {
    server_ = make_server();
    server_->start();
  }
  std::string url(std::string_view path) const { return fmt::format("http://127.0.0.1:{}{}", server_->port(), path); }
  std::unique_ptr<Server> server_;
};

TEST_F(ClientTest, SendsBodiesOfEverySize) {
  const auto client = Client::create();
  for (size_t size : {size_t(0), size_t(1), size_t(65535), size_t(65536), size_t(65537), size_t(5) << 20}) {
    ClientRequest request;
    request.method = "POST";
    request.url = url("/echo?x=1");
    request.body.assign(size, 'x');
    for (size_t i = 0; i < size; i += 97) request.body[i] = char('a' + i % 26);
    const std::string sent = request.body;
    const Answer answer = call(*client, std::move(request));
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, sent) << size;
  }
}

TEST_F(ClientTest, ReadsAStreamPieceByPiece) {
  const auto client = Client::create();
  std::string expected;
  for (int i = 0; i < 100; ++i) expected += std::string(size_t(i) * 100 + 1, char('a' + i % 26));
  EXPECT_EQ(call(*client, get(url("/stream"))).body, expected);
}

TEST_F(ClientTest, KeepsConnectionsAlsoBetweenLoops) {
  const auto client = Client::create();
  const std::string peer = call(*client, get(url("/hello"))).peer;
  EXPECT_EQ(call(*client, get(url("/hello"))).peer, peer);  // another I/O loop, the same connection
  EXPECT_EQ(call(*client, get(url("/stream"))).status, 200);
  EXPECT_EQ(call(*client, get(url("/hello"))).peer, peer);
}

TEST_F(ClientTest, KeepsNoConnectionWhoseAnswerWasNotReadToItsEnd) {
  const auto client = Client::create();
  std::string first;
  auto task = [](Client& c, ClientRequest request, std::string& piece) -> Task<void> {
    std::unique_ptr<ClientResponse> response = co_await c.send(std::move(request));
    std::optional<std::string> read = co_await response->read();
    piece = read.value_or("");
  };
  run_blocking(task(*client, get(url("/stream")), first));
  EXPECT_EQ(first.front(), 'a');
  EXPECT_EQ(call(*client, get(url("/hello"))).body, "hello");
}

TEST_F(ClientTest, PoolIsBounded) {
  ClientOptions options;
  options.max_idle_per_host = 0;
  const auto client = Client::create(options);
  const std::string peer = call(*client, get(url("/hello"))).peer;
  EXPECT_NE(call(*client, get(url("/hello"))).peer, peer);
}

TEST_F(ClientTest, ManyAtOnce) {
  const auto client = Client::create();
  int ok = 0;
  auto one = [](Client& c, ClientRequest request, int& count) -> Task<void> {
    std::unique_ptr<ClientResponse> response = co_await c.send(std::move(request));
    const std::string body = co_await response->read_all();
    count += body.size() == 495100;
  };
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 50; ++i) tasks.push_back(one(*client, get(url("/stream")), ok));
  run_blocking(run_all(std::move(tasks)));
  EXPECT_EQ(ok, 50);
}

TEST_F(ClientTest, HeadHasNoBody) {
  const auto client = Client::create();
  ClientRequest request = get(url("/hello"));
  request.method = "HEAD";
  const Answer answer = call(*client, std::move(request));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "");
}

TEST_F(ClientTest, CutStreamIsAnErrorNotAnEnd) {
  expect_failure(failure_of(get(url("/cut"))), ClientFailure::kBroken, "ended early");
}

TEST_F(ClientTest, BodyOverTheLimit) {
  expect_error(failure_of(get(url("/stream")), {}, 1000), Code::kResourceExhausted, "larger than 1000 bytes");
  expect_error(failure_of(get(url("/hello")), {}, 4), Code::kResourceExhausted, "larger than 4 bytes");
}

TEST_F(ClientTest, SecondRequestAfterTheServerClosedTheKeptConnection) {
  const auto client = Client::create();
  EXPECT_EQ(call(*client, get(url("/hello"))).body, "hello");
  const uint16_t port = server_->port();
  server_->stop(milliseconds(0));
  ServerOptions options;
  options.port = port;
  server_ = make_server(options);
  server_->start();
  EXPECT_EQ(call(*client, get(url("/hello"))).body, "hello");
  ClientRequest post;
  post.method = "POST";
  post.url = url("/echo");
  post.body = "again";
  EXPECT_EQ(call(*client, std::move(post)).body, "again");
}

TEST_F(ClientTest, ErrorStatusIsAnAnswer) {
  const auto client = Client::create();
  EXPECT_EQ(call(*client, get(url("/nowhere"))).status, 404);
}

// ------------------------------------------------------------------------------------------------ cannot connect

TEST(ClientConnect, Refused) {
  uint16_t port;
  {
    const auto server = make_server();
    port = server->port();
  }
  const Failed error = failure_of(get(fmt::format("http://127.0.0.1:{}/", port)));
  expect_failure(error, ClientFailure::kRefused, fmt::format("cannot connect to 127.0.0.1:{}: refused", port));
}

TEST(ClientConnect, BadUrl) {
  expect_error(failure_of(get("gopher://x")), Code::kInvalidArgument, "http://");
}

// ------------------------------------------------------------------------------------------------ bad servers

TEST(HostileServer, SaysNothing) {
  RawServer server(wait_for_close);
  ClientRequest request = get(server.url());
  request.header_timeout = milliseconds(50);
  expect_failure(failure_of(std::move(request)), ClientFailure::kTimeout, "did not answer within 50 ms");
}

TEST(HostileServer, StopsInTheMiddle) {
  RawServer server([](int fd) {
    read_request(fd);
    send_text(fd, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
    wait_for_close(fd);
  });
  ClientRequest request = get(server.url());
  request.idle_timeout = milliseconds(50);
  expect_failure(failure_of(std::move(request)), ClientFailure::kTimeout, "silent for 50 ms");
}

TEST(HostileServer, EndlessHead) {
  for (std::string line : {std::string("X-Filler: ") + std::string(200, 'x') + "\r\n", std::string(4096, 'x')}) {
    RawServer server([&line](int fd) {
      read_request(fd);
      send_text(fd, "HTTP/1.1 200 OK\r\nX: y");
      while (send_text(fd, line)) {
      }
    });
    expect_error(failure_of(get(server.url())), Code::kUnavailable, "");
  }
}

TEST(HostileServer, HeaderLineOf200Kilobytes) {
  const std::string answer = "HTTP/1.1 200 OK\r\nX: " + std::string(200 << 10, 'x') + "\r\nContent-Length: 0\r\n\r\n";
  expect_failure(failure_against(answer), ClientFailure::kNotHttp, "longer than 65536 bytes");
}

TEST(HostileServer, TooManyHeaders) {
  std::string answer = "HTTP/1.1 200 OK\r\n";
  for (int i = 0; i < 300; ++i) answer += fmt::format("X-{}: y\r\n", i);
  expect_failure(failure_against(answer + "\r\n"), ClientFailure::kNotHttp, "more than 256");
}

TEST(HostileServer, EndlessInterimAnswers) {
  RawServer server([](int fd) {
    read_request(fd);
    while (send_text(fd, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")) {
    }
  });
  expect_failure(failure_of(get(server.url())), ClientFailure::kNotHttp, "interim");
}

TEST(HostileServer, HeadsThatAreNotHttp) {
  for (const char* answer : {"",
                             "hello\r\n\r\n",
                             "HTTP/1.1\r\n\r\n",
                             "HTTP/1.1 abc OK\r\n\r\n",
                             "HTTP/1.1 2000 OK\r\n\r\n",
                             "HTTP/2 200 OK\r\n\r\n",
                             "HTTP/1.1 600 X\r\n\r\n",
                             "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
                             "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
                             "HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
                             "HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
                             "\x16\x03\x01\x02",
                             "HTTP/1.1 200 OK\r\nContent-Length: 1",
                             "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
                             "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
                             "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
                             "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
                             "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                             "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                             "HTTP/1.1 101 Switching Protocols\r\n\r\n"})
    expect_error(failure_against(answer), Code::kUnavailable, "127.0.0.1:");
}

TEST(HostileServer, BadChunks) {
  const std::string head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const char* body : {"zz\r\n", "5\r\nhelloX", "-1\r\n", "5 \r\nhello\r\n0\r\n\r\n", "11111111111111111\r\n",
                           "5\nhello\n0\n\n", "5\r\nhel", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", ""})
    expect_error(failure_against(head + body), Code::kUnavailable, "the answer of 127.0.0.1:");
  expect_failure(failure_against(head + "1;" + std::string(200 << 10, 'x') + "\r\na\r\n0\r\n\r\n"),
                 ClientFailure::kNotHttp, "is not HTTP");
}

TEST(HostileServer, ChunkThatClaimsEverything) {
  const std::string answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc";
  expect_error(failure_against(answer), Code::kUnavailable, "ended early");
  expect_error(failure_against("HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999\r\n\r\nabc"),
               Code::kResourceExhausted, "larger than");
}

TEST(HostileServer, ShorterThanItsLength) {
  expect_failure(failure_against("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), ClientFailure::kBroken,
                 "closed 7 bytes before the end");
}

TEST(HostileServer, MoreThanItsLengthIsNotTheNextAnswer) {
  std::atomic<int> connections{0};
  RawServer server([&connections](int fd) {
    ++connections;
    read_request(fd);
    send_text(fd, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
  });
  const auto client = Client::create();
  EXPECT_EQ(call(*client, get(server.url())).body, "ok");
  EXPECT_EQ(call(*client, get(server.url())).body, "ok");
  EXPECT_EQ(connections, 2);
}

TEST(HostileServer, AnswersBeforeItHasReadTheBody) {
  RawServer server([](int fd) {
    read_request(fd);
    send_text(fd, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
    ::shutdown(fd, SHUT_WR);
    wait_for_close(fd);
  });
  ClientRequest request;
  request.method = "POST";
  request.url = server.url();
  request.body.assign(8 << 20, 'x');
  const auto client = Client::create();
  const Answer answer = call(*client, std::move(request));
  EXPECT_EQ(answer.status, 413);
  EXPECT_EQ(answer.body, "big");
}

TEST(HostileServer, StopsReadingTheBody) {
  std::promise<void> done;
  std::shared_future<void> finished = done.get_future().share();
  RawServer server([finished](int) { finished.wait(); });
  ClientRequest request;
  request.method = "POST";
  request.url = server.url();
  request.body.assign(64 << 20, 'x');
  request.idle_timeout = milliseconds(50);
  request.header_timeout = milliseconds(200);
  expect_error(failure_of(std::move(request)), Code::kUnavailable, "did not answer within 200 ms");
  done.set_value();
}

// A POST that reached a kept connection is not sent a second time: it may have been carried out.
TEST(HostileServer, PostIsNeverSentTwice) {
  std::atomic<int> requests{0};
  RawServer server([&requests](int fd) {
    for (int i = 0; i < 2; ++i) {
      if (read_request(fd).empty()) return;
      ++requests;
      if (i == 0) send_text(fd, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    }
  });
  const auto client = Client::create();
  EXPECT_EQ(call(*client, get(server.url())).status, 200);
  ClientRequest post;
  post.method = "POST";
  post.url = server.url();
  post.body = "x";
  try {
    call(*client, std::move(post));
    ADD_FAILURE() << "answered";
  } catch (const Error& e) {
    expect_error(e, Code::kUnavailable, "did not answer: the connection was closed");
  }
  EXPECT_EQ(requests, 2);
  // A GET in the same place goes out once more, on a new connection.
  EXPECT_EQ(call(*client, get(server.url())).status, 200);
  EXPECT_EQ(requests, 3);
  EXPECT_EQ(call(*client, get(server.url())).status, 200);
  EXPECT_EQ(requests, 5);
}

// ------------------------------------------------------------------------------------------------ cancelling

TEST(ClientCancel, WhileTheHeadIsAwaited) {
  std::promise<void> closed;
  AsyncQueue<bool> arrived;
  RawServer server([&closed, arrived](int fd) mutable {
    read_request(fd);
    arrived.push(true);
    wait_for_close(fd);
    closed.set_value();
  });
  const auto client = Client::create();
  ClientRequest request = get(server.url());
  request.cancellation = std::make_shared<Cancellation>();
  auto sender = [](Client& c, ClientRequest r) -> Task<void> { co_await c.send(std::move(r)); };
  auto canceller = [](AsyncQueue<bool> seen, std::shared_ptr<Cancellation> cancellation) -> Task<void> {
    co_await seen.pop();
    cancellation->cancel();
  };
  std::vector<Task<void>> tasks;
  tasks.push_back(canceller(arrived, request.cancellation));
  tasks.push_back(sender(*client, std::move(request)));
  try {
    run_blocking(run_all(std::move(tasks)));
    ADD_FAILURE() << "answered";
  } catch (const Error& e) {
    expect_error(e, Code::kCancelled, "cancelled");
  }
  closed.get_future().wait();  // the server saw the client go
}

TEST(ClientCancel, BeforeItWasSent) {
  RawServer server([](int fd) { wait_for_close(fd); });
  ClientRequest request = get(server.url());
  request.cancellation = std::make_shared<Cancellation>();
  request.cancellation->cancel();
  expect_error(failure_of(std::move(request)), Code::kCancelled, "cancelled");
}

TEST(ClientCancel, AbortEndsAPendingRead) {
  RawServer server([](int fd) {
    read_request(fd);
    send_text(fd, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
    wait_for_close(fd);
  });
  const auto client = Client::create();
  auto task = [](Client& c, ClientRequest request) -> Task<void> {
    std::unique_ptr<ClientResponse> response = co_await c.send(std::move(request));
    auto aborter = [](ClientResponse& r) -> Task<void> {
      r.abort();
      co_return;
    };
    auto reader = [](ClientResponse& r) -> Task<void> { co_await r.read(); };
    std::vector<Task<void>> both;
    both.push_back(reader(*response));  // starts first, and waits
    both.push_back(aborter(*response));
    co_await run_all(std::move(both));
  };
  try {
    run_blocking(task(*client, get(server.url())));
    ADD_FAILURE() << "answered";
  } catch (const Error& e) {
    expect_error(e, Code::kCancelled, "cancelled");
  }
}

// ------------------------------------------------------------------------------------------------ TLS

// A certificate for 127.0.0.1 that no authority knows.
class TlsFiles {
 public:
  TlsFiles() {
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* certificate = X509_new();
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -60);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME* name = X509_get_subject_name(certificate);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("127.0.0.1"), -1, -1,
                               0);
    X509_set_issuer_name(certificate, name);
    X509_sign(certificate, key, EVP_sha256());
    FILE* file = std::fopen(certfile.c_str(), "w");
    PEM_write_X509(file, certificate);
    std::fclose(file);
    file = std::fopen(keyfile.c_str(), "w");
    PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
    std::fclose(file);
    X509_free(certificate);
    EVP_PKEY_free(key);
  }
  ~TlsFiles() {
    std::filesystem::remove(certfile);
    std::filesystem::remove(keyfile);
  }
  const std::string certfile = testing::TempDir() + fmt::format("client_test_{}.crt", ::getpid());
  const std::string keyfile = testing::TempDir() + fmt::format("client_test_{}.key", ::getpid());
};

TEST(ClientTls, ChecksTheCertificateUnlessToldNotTo) {
  const TlsFiles files;
  ServerOptions options;
  options.ssl_certfile = files.certfile;
  options.ssl_keyfile = files.keyfile;
  const auto server = make_server(options);
  server->start();
  const std::string url = fmt::format("https://127.0.0.1:{}/stream", server->port());
  expect_failure(failure_of(get(url)), ClientFailure::kNoConnection, "certificate verify failed");
  ClientOptions insecure;
  insecure.verify_tls = false;
  const auto client = Client::create(insecure);
  const Answer answer = call(*client, get(url));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body.size(), 495100u);
  const std::string plain = fmt::format("http://127.0.0.1:{}/hello", server->port());
  EXPECT_EQ(int(failure_of(get(plain)).code()), int(Code::kUnavailable));
}

TEST(ClientTls, PlainServerIsRefused) {
  const auto server = make_server();
  server->start();
  expect_error(failure_of(get(fmt::format("https://127.0.0.1:{}/hello", server->port()))), Code::kUnavailable,
               "cannot connect to 127.0.0.1");
}

}  // namespace
}  // namespace moectl::http
