// The server from outside, over loopback: framing, limits, timeouts, streams, departures, shutdown.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <sstream>
#include <thread>

#include "tests/http/test_client.h"

namespace moectl::http {
namespace {

using std::chrono::milliseconds;

TEST_F(ServerTest, KeepAliveAndPipelining) {
  start();
  RawClient client(server->port());
  for (int i = 0; i < 3; ++i) {
    client.send(kHello);
    EXPECT_EQ(client.answer().body, "hello");
  }
  client.send("\r\n" + kHello);  // some clients send an empty line after a body
  EXPECT_EQ(client.answer().body, "hello");
  std::string many;
  for (int i = 0; i < 200; ++i)
    many += "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n" + std::to_string(100 + i);
  client.send(many);
  for (int i = 0; i < 200; ++i) ASSERT_EQ(client.answer().body, std::to_string(100 + i));
}

TEST_F(ServerTest, HeadHttp10AndRequestIds) {
  start();
  RawClient client(server->port());
  client.send("HEAD /hello HTTP/1.1\r\nHost: x\r\nX-Request-Id: a.b-9\r\n\r\n" + kHello);
  auto head = client.answer(true);
  EXPECT_NE(head.head.find("Content-Length: 5\r\n"), std::string::npos);
  EXPECT_NE(head.head.find("X-Request-Id: a.b-9\r\n"), std::string::npos);
  EXPECT_EQ(client.answer().body, "hello") << "a HEAD answer has no body";
  client.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\nX-Request-Id: bad id\r\n\r\n");
  auto old = client.answer();
  EXPECT_NE(old.head.find("Connection: keep-alive"), std::string::npos);
  EXPECT_EQ(old.head.find("bad id"), std::string::npos);
  EXPECT_EQ(client.status_then_close("GET /hello HTTP/1.0\r\n\r\n"), 200);
}

TEST_F(ServerTest, NothingAfterARefusedRequestIsServed) {
  start();
  const std::string post = "POST /echo HTTP/1.1\r\nHost: x\r\n";
  for (const auto& [bytes, status] : std::vector<std::pair<std::string, int>>{
           {post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
           {post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400},
           {post + "Transfer-Encoding: gzip\r\n\r\n", 501},
           {post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400},
           {"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
           {post + "Host: y\r\n\r\n", 400},
           {post + "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", 415},
           {"\r\n\r\n" + kHello, 400},
           {post + "A: b\r\n c\r\n\r\n", 400},
           {"GET /hello HTTP/1.1\nHost: x\n\n", 400},
           {post + "Content-Length: +5\r\n\r\n12345", 400},
           {post + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(200 << 10, 'x') + "\r\na\r\n0\r\n\r\n", 400},
           {post + "Transfer-Encoding: chunked\r\n\r\n0\r\nA: " + std::string(200 << 10, 'x') + "\r\n\r\n", 431},
           {post + "A: " + std::string(33 << 10, 'x') + "\r\n\r\n", 431},
           {"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", 404}}) {
    RawClient client(server->port());
    EXPECT_EQ(client.status_then_close(bytes + kHello), status) << bytes.substr(0, 200);
    EXPECT_EQ(client.text.find("hello"), std::string::npos) << bytes.substr(0, 200);
    EXPECT_NE(client.text.find("Connection: close"), std::string::npos);
    EXPECT_NE(client.text.find("error: "), std::string::npos) << "every error goes through the responder";
  }
  expect_alive();
}

TEST_F(ServerTest, RoutesGateAndFailures) {
  make();
  server->route("GET", "/under/*", [](Exchange& x) -> Task<void> {
    Response r;
    r.body = x.request().path;
    r.headers.emplace_back("X-Ok", "1");
    r.headers.emplace_back("X-Bad", "1\r\nX-Injected: 1");
    co_await x.respond(std::move(r));
  });
  server->route("GET", "/throws", [](Exchange&) -> Task<void> {
    throw Error(Code::kUnavailable, "not now");
    co_return;
  });
  server->route("GET", "/silent", [](Exchange&) -> Task<void> { co_return; });
  server->set_gate([](const Request& r) -> std::optional<Response> {
    if (r.header("x-refuse").empty()) return std::nullopt;
    Response refused;
    refused.status = 401;
    return refused;
  });
  server->start(1);
  RawClient client(server->port());
  auto ask = [&](const std::string& line, const std::string& fields = "") {
    client.send(line + " HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n");
    return client.answer();
  };
  auto under = ask("GET /under/a/b");
  EXPECT_EQ(under.body, "/under/a/b");
  EXPECT_NE(under.head.find("X-Ok: 1"), std::string::npos);
  EXPECT_EQ(under.head.find("Injected"), std::string::npos);
  EXPECT_EQ(ask("GET /other").status, 404);
  auto not_allowed = ask("DELETE /hello");
  EXPECT_EQ(not_allowed.status, 405);
  EXPECT_NE(not_allowed.head.find("Allow: GET, HEAD\r\n"), std::string::npos);
  auto failed = ask("GET /throws");  // ErrorResponder may answer with another status
  EXPECT_EQ(failed.status, 500);
  EXPECT_EQ(failed.body, "error: not now");
  EXPECT_EQ(ask("GET /silent").status, 500);
  EXPECT_EQ(ask("GET /hello", "X-Refuse: 1\r\n").status, 401);
  EXPECT_EQ(ask("GET /hello").status, 200) << "the connection survived all of this";
}

TEST_F(ServerTest, BodiesUpToTheLimit) {
  ServerOptions options;
  options.max_body_bytes = 1 << 20;
  start(options);
  const std::string post = "POST /echo HTTP/1.1\r\nHost: x\r\n";
  std::string body(options.max_body_bytes, 'b');
  {
    RawClient client(server->port());
    std::thread sender([&] { client.send(post + "Content-Length: 1048576\r\n\r\n" + body); });
    EXPECT_EQ(client.answer().body, body);
    sender.join();
    std::string chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
    for (size_t at = 0, n = 1; at < body.size(); at += n, n = n * 3 + 1) {
      n = std::min(n, body.size() - at);
      chunked += fmt::format("{:X}\r\n", n) + body.substr(at, n) + "\r\n";
    }
    client.send(chunked + "0\r\n\r\n");
    EXPECT_EQ(client.answer().body, body);
  }
  RawClient declared(server->port());
  EXPECT_EQ(declared.status_then_close(post + "Content-Length: 1048577\r\nExpect: 100-continue\r\n\r\n"), 413);
  EXPECT_EQ(declared.text.find("100 Continue"), std::string::npos);
  RawClient crossing(server->port());
  EXPECT_EQ(crossing.status_then_close(post + "Transfer-Encoding: chunked\r\n\r\n100000\r\n" + body +
                                       "\r\n1\r\nx\r\n0\r\n\r\n"),
            413);
  RawClient continued(server->port());
  continued.send(post + "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(continued.answer().status, 100);
  continued.send("ok");
  EXPECT_EQ(continued.answer().body, "ok");
}

// One body stays in memory while its handler waits; what does not fit beside it is refused, and fits afterwards.
TEST_F(ServerTest, BodiesOfAllConnectionsTogether) {
  ServerOptions options;
  options.max_body_bytes = 1 << 20;
  options.max_total_body_bytes = 1 << 20;
  make(options);
  Flag held;
  auto release = std::make_shared<AsyncQueue<int>>();
  server->route("POST", "/hold", [&held, release](Exchange& x) -> Task<void> {
    held.set();
    co_await release->pop(std::chrono::seconds(60));
    Response r;
    co_await x.respond(std::move(r));
  });
  server->start(2);
  const std::string echo = "POST /echo HTTP/1.1\r\nHost: x\r\n", half(600 << 10, 'b');
  const std::string length = fmt::format("Content-Length: {}\r\n\r\n", half.size());
  RawClient holder(server->port());
  holder.send("POST /hold HTTP/1.1\r\nHost: x\r\n" + length + half);
  ASSERT_TRUE(held.wait());
  RawClient declared(server->port());
  EXPECT_EQ(declared.status_then_close(echo + "Expect: 100-continue\r\n" + length), 503);
  const std::string chunked =
      echo + fmt::format("Transfer-Encoding: chunked\r\n\r\n{:X}\r\n", half.size()) + half + "\r\n0\r\n\r\n";
  RawClient growing(server->port());
  EXPECT_EQ(growing.status_then_close(chunked), 503);
  RawClient small(server->port());
  small.send(echo + "Content-Length: 2\r\n\r\nok");
  EXPECT_EQ(small.answer().body, "ok") << "what fits is served";
  release->push(1);
  EXPECT_EQ(holder.answer().status, 200);
  holder.send(chunked);  // on the same connection: its first request has given its share back
  EXPECT_EQ(holder.answer().body, half);
}

TEST_F(ServerTest, SlowHeadAndSlowBodyGet408) {
  ServerOptions options;
  options.header_timeout = milliseconds(50);
  start(options);
  RawClient head(server->port()), body(server->port());
  EXPECT_EQ(head.status_then_close("GET /hello HT"), 408);
  EXPECT_EQ(body.status_then_close("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"), 408);
  options.header_timeout = milliseconds(10'000);
  options.idle_timeout = milliseconds(50);
  server->stop(milliseconds(0));
  start(options);
  RawClient silent(server->port());
  EXPECT_EQ(silent.status_then_close(""), 0) << "an idle connection is closed without an answer";
}

TEST_F(ServerTest, StreamsOfManyClients) {
  make();
  server->route("GET", "/stream", [](Exchange& x) -> Task<void> {
    co_await x.start_stream();
    for (int i = 0; i < 50; ++i) {
      std::string event = sse_event(x.request().query + std::to_string(i));
      co_await x.write(std::move(event));
    }
    std::string done(kSseDone);
    co_await x.write(std::move(done));
    co_await x.finish();
  });
  server->start(2);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 64; ++i) {
    clients.push_back(std::make_unique<RawClient>(server->port()));
    clients.back()->send(fmt::format("GET /stream?c{}- HTTP/1.1\r\nHost: x\r\n\r\n", i));
  }
  for (int i = 0; i < 64; ++i) {
    std::string expected;
    for (int k = 0; k < 50; ++k) expected += fmt::format("data: c{}-{}\n\n", i, k);
    auto a = clients[size_t(i)]->answer();
    EXPECT_EQ(a.body, expected + "data: [DONE]\n\n");
    EXPECT_NE(a.head.find("Content-Type: text/event-stream"), std::string::npos);
    clients[size_t(i)]->send(kHello);
    EXPECT_EQ(clients[size_t(i)]->answer().body, "hello") << "a finished stream keeps the connection";
  }
  RawClient old(server->port());
  EXPECT_EQ(old.status_then_close("GET /stream?o HTTP/1.0\r\n\r\n"), 200);
  EXPECT_TRUE(old.text.ends_with("data: [DONE]\n\n")) << "HTTP/1.0 knows no chunks";
}

TEST_F(ServerTest, BodiesInPieces) {
  make();
  // The query gives the promised length ("-": unknown) and the sizes of the pieces.
  auto handler = [](Exchange& x) -> Task<void> {
    std::istringstream query(x.request().query);
    std::string length, size;
    std::getline(query, length, ',');
    Response head;
    head.status = 203;
    head.content_type = "text/plain";
    head.headers.emplace_back("X-Extra", "1");
    std::optional<size_t> content_length;
    if (length != "-") content_length = std::stoul(length);
    co_await x.start_body(std::move(head), content_length);
    while (std::getline(query, size, ',')) {
      std::string piece(std::stoul(size), 'p');
      co_await x.write(std::move(piece));
    }
    co_await x.finish();
  };
  server->route("GET", "/pieces", handler);
  server->start(2);
  RawClient client(server->port());
  const auto ask = [&](const std::string& query, const std::string& method = "GET") {
    client.send(method + " /pieces?" + query + " HTTP/1.1\r\nHost: x\r\n\r\n");
    return client.answer(method == "HEAD");
  };
  for (const auto& [query, bytes] : std::vector<std::pair<std::string, size_t>>{{"0", 0},
                                                                                {"7,3,0,4", 7},
                                                                                {"1000003,3,1000000", 1'000'003},
                                                                                {"-", 0},
                                                                                {"-,3,0,4", 7},
                                                                                {"-,3,1000000", 1'000'003}}) {
    auto a = ask(query);
    EXPECT_EQ(a.status, 203) << query;
    EXPECT_EQ(a.body, std::string(bytes, 'p')) << query;
    const bool known = query[0] != '-';
    EXPECT_EQ(a.head.find("Content-Length: ") != std::string::npos, known) << query;
    EXPECT_EQ(a.head.find("Transfer-Encoding: chunked") != std::string::npos, !known) << query;
    EXPECT_NE(a.head.find("X-Extra: 1\r\n"), std::string::npos);
    EXPECT_NE(a.head.find("Content-Type: text/plain\r\n"), std::string::npos);
  }
  EXPECT_NE(ask("7,3,4", "HEAD").head.find("Content-Length: 7\r\n"), std::string::npos);
  EXPECT_EQ(ask("-,3", "HEAD").status, 203);
  EXPECT_EQ(ask("7,7").body, "ppppppp") << "an answer to HEAD has no body";
  RawClient old(server->port());
  EXPECT_EQ(old.status_then_close("GET /pieces?-,3,4 HTTP/1.0\r\n\r\n"), 203);
  EXPECT_TRUE(old.text.ends_with("\r\n\r\nppppppp")) << "HTTP/1.0 knows no chunks";
  RawClient kept(server->port());
  kept.send("GET /pieces?7,3,4 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + kHello);
  EXPECT_EQ(kept.answer().body, "ppppppp");
  EXPECT_EQ(kept.answer().body, "hello");
  RawClient half_closed(server->port());
  half_closed.send("GET /pieces?1000003,3,1000000 HTTP/1.1\r\nHost: x\r\n\r\n");
  half_closed.half_close();
  EXPECT_EQ(half_closed.answer().body.size(), 1'000'003u);
}

// What the handler promised and what it wrote differ: the client must not take the answer for complete.
TEST_F(ServerTest, BodiesInPiecesThatMissTheirLengthAreCutOff) {
  make();
  for (size_t bytes : {6, 8})
    server->route("GET", fmt::format("/{}", bytes), [bytes](Exchange& x) -> Task<void> {
      Response head;
      co_await x.start_body(std::move(head), 7);
      for (size_t i = 0; i < bytes; ++i) {
        std::string piece = "p";
        co_await x.write(std::move(piece));
      }
      co_await x.finish();
    });
  server->route("GET", "/abort", [](Exchange& x) -> Task<void> {
    Response head;
    co_await x.start_body(std::move(head), std::nullopt);
    std::string piece = "pppppp";
    co_await x.write(std::move(piece));
    x.abort();
  });
  server->start(1);
  for (std::string path : {"/6", "/8", "/abort"}) {
    RawClient client(server->port());
    EXPECT_EQ(client.status_then_close("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" + kHello), 200);
    EXPECT_EQ(client.text.find("hello"), std::string::npos) << path;
    const size_t body = client.text.find("\r\n\r\n") + 4;
    EXPECT_EQ(std::count(client.text.begin() + ptrdiff_t(body), client.text.end(), 'p'), path == "/8" ? 7 : 6);
    EXPECT_FALSE(client.text.ends_with("0\r\n\r\n"));
  }
  expect_alive();
}

// A stream fed from an AsyncQueue by another thread, as the engine does.
TEST_F(ServerTest, ClientGoneInMidStreamIsTold) {
  make();
  Flag gone, ended;
  auto channel = std::make_shared<AsyncQueue<std::string>>();
  std::atomic<bool> cancelled{false};
  server->route("GET", "/stream", [&](Exchange& x) -> Task<void> {
    x.on_client_gone([&] {
      gone.set();
      channel->close();
    });
    try {
      co_await x.start_stream();
      for (;;) {
        std::optional<std::string> next = co_await channel->pop();
        if (!next) break;
        co_await x.write(std::move(*next));
      }
      std::string late = "late";
      co_await x.write(std::move(late));
    } catch (const Error& e) {
      cancelled = e.code() == Code::kCancelled;
    }
    ended.set();
  });
  server->start(2);
  {
    RawClient client(server->port());
    client.send("GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    channel->push("first");
    EXPECT_NE(client.until("first"), "");
  }
  EXPECT_TRUE(gone.wait());
  EXPECT_TRUE(ended.wait());
  EXPECT_TRUE(cancelled);
  expect_alive();
}

TEST_F(ServerTest, SlowReaderIsCancelledAndOthersGoOn) {
  ServerOptions options;
  options.write_stall_timeout = milliseconds(100);
  make(options);
  Flag gone, ended;
  server->route("GET", "/flood", [&](Exchange& x) -> Task<void> {
    x.on_client_gone([&] { gone.set(); });
    bool cancelled = false;
    try {
      co_await x.start_stream();
      for (;;) {
        std::string data(1 << 16, 'x');
        co_await x.write(std::move(data));
      }
    } catch (const Error& e) {
      cancelled = e.code() == Code::kCancelled;
    }
    if (cancelled) ended.set();
  });
  server->start(1);
  RawClient slow(server->port(), 4096);
  slow.send("GET /flood HTTP/1.1\r\nHost: x\r\n\r\n");
  expect_alive();
  EXPECT_TRUE(gone.wait());
  EXPECT_TRUE(ended.wait());
}

TEST_F(ServerTest, AbortedStreamHasNoCleanEnd) {
  make();
  server->route("GET", "/abort", [](Exchange& x) -> Task<void> {
    co_await x.start_stream();
    std::string data = sse_event("{\"error\":{}}");
    co_await x.write(std::move(data));
    x.abort();
  });
  server->route("GET", "/throw", [](Exchange& x) -> Task<void> {
    co_await x.start_stream();
    throw std::runtime_error("in mid-stream");
  });
  server->start(1);
  for (std::string path : {"/abort", "/throw"}) {
    RawClient client(server->port());
    EXPECT_EQ(client.status_then_close("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"), 200);
    EXPECT_FALSE(client.text.ends_with("0\r\n\r\n"));
  }
}

TEST_F(ServerTest, WorkOnAPoolComesBack) {
  CpuPool pool(2);
  make();
  server->route("POST", "/pool", [&](Exchange& x) -> Task<void> {
    auto io = std::this_thread::get_id();
    auto work = [&] { return std::this_thread::get_id() == io ? std::string("same") : x.request().body; };
    std::string result = co_await run_on(pool, work);
    auto fail = [] { throw Error(Code::kInvalidArgument, "from the pool"); };
    if (result == "fail") co_await run_on(pool, fail);
    Response r;
    r.body = std::this_thread::get_id() == io ? result : "elsewhere";
    co_await x.respond(std::move(r));
  });
  server->start(1);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 16; ++i) {
    clients.push_back(std::make_unique<RawClient>(server->port()));
    clients.back()->send("POST /pool HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nwork");
  }
  for (auto& client : clients) EXPECT_EQ(client->answer().body, "work");
  clients[0]->send("POST /pool HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nfail");
  auto failed = clients[0]->answer();
  EXPECT_EQ(failed.status, 500);
  EXPECT_EQ(failed.body, "error: from the pool");
  server->stop(milliseconds(1000));
}

TEST_F(ServerTest, AsyncQueueTimesOutAndLosesNothing) {
  make();
  constexpr int kItems = 20'000;
  std::thread producer;
  server->route("GET", "/sum", [&](Exchange& x) -> Task<void> {
    auto channel = std::make_shared<AsyncQueue<int>>();
    std::optional<int> none = co_await channel->pop(milliseconds(1));
    bool timed_out = !none && channel->timed_out();
    producer = std::thread([channel] {
      for (int i = 1; i <= kItems; ++i) channel->push(i);
      channel->close();
      channel->push(7);  // dropped
    });
    long long sum = 0;
    for (;;) {
      std::optional<int> next = co_await channel->pop(std::chrono::seconds(30));
      if (!next) break;
      sum += *next;
    }
    Response r;
    r.body = fmt::format("{} {} {}", timed_out, channel->timed_out(), sum);
    co_await x.respond(std::move(r));
  });
  server->start(2);
  RawClient client(server->port());
  client.send("GET /sum HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.answer().body, fmt::format("true false {}", 1ll * kItems * (kItems + 1) / 2));
  producer.join();
}

TEST_F(ServerTest, AtTheCapTheLongestIdleMakesRoom) {
  ServerOptions options;
  options.max_connections = 4;
  start(options, 1);  // one thread: who was answered first is idle first
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 4; ++i) {
    idle.push_back(std::make_unique<RawClient>(server->port()));
    idle.back()->send(kHello);
    EXPECT_EQ(idle.back()->answer().body, "hello");
  }
  RawClient fifth(server->port());
  fifth.send(kHello);
  EXPECT_EQ(fifth.answer().body, "hello");
  EXPECT_EQ(idle[0]->until_eof(), "") << "the first was idle longest";
  idle[3]->send(kHello);
  EXPECT_EQ(idle[3]->answer().body, "hello");
}

TEST_F(ServerTest, AtTheCapAFreshConnectionIsNotEvictedBeforeItsRequest) {
  ServerOptions options;
  options.max_connections = 2;
  start(options);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(std::make_unique<RawClient>(server->port()));
    clients.back()->send("GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  }
  for (auto& client : clients) {
    EXPECT_EQ(client->answer().body, "hello");
    client.reset();
  }
}

TEST_F(ServerTest, WithoutDescriptorsAnIdleConnectionMakesRoom) {
  start();
  RawClient idle(server->port());
  idle.send(kHello);
  EXPECT_EQ(idle.answer().body, "hello");
  RawClient next(0);
  rlimit before{}, tight{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  int highest = ::open("/dev/null", O_RDONLY);  // the lowest free number: below it nothing is free
  ASSERT_GE(highest, 0);
  tight = before;
  tight.rlim_cur = rlim_t(highest) + 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  next.connect(server->port());
  next.send(kHello);
  std::string body = next.answer().body;
  setrlimit(RLIMIT_NOFILE, &before);
  ::close(highest);
  EXPECT_EQ(body, "hello");
  EXPECT_EQ(idle.until_eof(), "");
}

TEST_F(ServerTest, StopWaitsForOpenExchangesThenCuts) {
  make();
  Flag started, gone;
  auto finish = std::make_shared<AsyncQueue<int>>();
  auto never = std::make_shared<AsyncQueue<int>>();
  server->route("GET", "/wait", [&](Exchange& x) -> Task<void> {
    started.set();
    co_await finish->pop();
    Response r;
    r.body = "finished";
    co_await x.respond(std::move(r));
  });
  server->route("GET", "/never", [&](Exchange& x) -> Task<void> {
    x.on_client_gone([&] {
      gone.set();
      never->close();
    });
    co_await x.start_stream();
    co_await never->pop();
  });
  server->start(1);  // one thread: the idle client's exchange has ended before the next request is read
  RawClient idle(server->port()), busy(server->port());
  idle.send(kHello);
  EXPECT_EQ(idle.answer().body, "hello");
  busy.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(started.wait());
  EXPECT_EQ(server->open_exchanges(), 1u);
  std::thread stopper([&] { server->stop(std::chrono::seconds(30)); });
  EXPECT_EQ(idle.until_eof(), "");
  finish->push(1);
  auto last = busy.answer();
  EXPECT_EQ(last.body, "finished");
  EXPECT_NE(last.head.find("Connection: close"), std::string::npos);
  stopper.join();

  make();
  server->route("GET", "/never", [&](Exchange& x) -> Task<void> {
    x.on_client_gone([&] {
      gone.set();
      never->close();
    });
    co_await x.start_stream();
    co_await never->pop();
  });
  server->start(1);
  RawClient stuck(server->port());
  stuck.send("GET /never HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(stuck.answer(true).status, 200);
  server->stop(milliseconds(10));
  EXPECT_TRUE(gone.wait());
}

TEST_F(ServerTest, AddressesThatCannotBeUsed) {
  start();
  ServerOptions options;
  options.port = server->port();
  try {
    Server::create(options, plain_error);
    FAIL() << "two servers on one port";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kResourceExhausted);
    EXPECT_NE(std::string(e.what()).find("is in use by another process"), std::string::npos);
  }
  for (std::string host : {"no such host", "203.0.113.1"}) {
    ServerOptions bad;
    bad.host = host;
    try {
      Server::create(bad, plain_error);
      ADD_FAILURE() << host;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kInvalidArgument) << e.what();
    }
  }
  for (std::string host : {"localhost", "0.0.0.0"}) {
    ServerOptions good;
    good.host = host;
    EXPECT_NE(Server::create(good, plain_error)->port(), 0);
  }
}

TEST_F(ServerTest, MutatedRequestsNeverHurtTheServer) {
  start();
  const std::string seed =
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody" +
      kHello;
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::string s = seed;
    for (unsigned k = 1 + random() % 4; k--;) {
      size_t at = random() % s.size();
      switch (random() % 3) {
        case 0:
          s[at] = char(random());
          break;
        case 1:
          s.erase(at, 1 + random() % 6);
          break;
        case 2:
          s.insert(at, s.substr(random() % s.size(), random() % 60));
          break;
      }
    }
    RawClient client(server->port());
    client.send(s);
    client.half_close();
    client.until_eof();
    if (HasFailure()) FAIL() << "round " << round << ": " << s;
  }
  expect_alive();
  server->stop(std::chrono::seconds(30));
  EXPECT_EQ(server->open_exchanges(), 0u);
}

TEST(Sse, Format) {
  EXPECT_EQ(sse_event("{}"), "data: {}\n\n");
  EXPECT_EQ(sse_event("a\r\nb\rc\n"), "data: a\ndata: b\ndata: c\ndata: \n\n");
}

}  // namespace
}  // namespace moectl::http
