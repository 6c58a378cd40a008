// KV transfers between a server and a source over loopback: what arrives, to the byte; company, order of workers,
// cancellation, limits.
#include <numeric>
#include <random>

#include "tests/pd/kv_harness.h"

namespace moectl::test {
namespace {

struct Shape {
  int num_lanes, page_size;
  int64_t token_bytes;
  int num_tokens, first_page;
};

class KvRoundTrip : public ::testing::TestWithParam<Shape> {};

TEST_P(KvRoundTrip, EveryWantedByteAndNoOther) {
  const Shape s = GetParam();
  const KvLayout layout = make_layout(s.num_lanes, s.page_size, s.token_bytes);
  FakeProducer engine(layout, 64);
  KvServer server(engine.producer(), server_options());
  Decode decode(layout, 64);
  const int num_pages = (s.num_tokens + s.page_size - 1) / s.page_size - s.first_page;
  std::vector<int32_t> pages;
  for (int i = 0; i < num_pages; ++i) pages.push_back((i * 5 + 2) % 64);
  const RemotePrefill want =
      decode.request(1, {endpoint(server.port())}, make_prompt(s.num_tokens + 1), s.first_page, pages, "salt");

  const RemotePrefillResult result = decode.run(want);

  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.num_bytes, int64_t(s.num_tokens - s.first_page * s.page_size) * s.token_bytes * s.num_lanes);
  EXPECT_EQ(result.num_cached_tokens, 5);
  EXPECT_EQ(result.queue_seconds, 0.25);
  EXPECT_EQ(result.compute_seconds, 0.5);
  EXPECT_EQ(result.worker, endpoint(server.port()));
  decode.expect_filled(want);
  decode.expect_untouched_but({pages.begin(), pages.end()});
  engine.wait_until([](const FakeProducer& e) { return e.num_released == 1 && e.num_free() == 64; });
  EXPECT_EQ(engine.num_cancelled, 0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, KvRoundTrip,
                         ::testing::Values(Shape{1, 64, 4, 1, 0}, Shape{3, 64, 40, 63, 0}, Shape{3, 64, 40, 64, 0},
                                           Shape{3, 64, 40, 65, 0}, Shape{3, 64, 40, 65, 1}, Shape{61, 64, 8, 1000, 0},
                                           Shape{61, 64, 8, 1000, 15}, Shape{2, 64, 640, 3000, 7},
                                           Shape{5, 16, 12, 333, 3}, Shape{1, 1, 3, 50, 10},
                                           Shape{27, 64, 2304, 640, 0}));

TEST(KvTransfer, ManyTransfersShareOneConnection) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 257, 50);
  KvServer server(engine.producer(), server_options());
  Decode decode(layout, 256);
  engine.hold_at(130);  // all of them are under way at the same time
  std::vector<RemotePrefill> wants;
  std::vector<std::future<RemotePrefillResult>> results;
  for (int i = 0; i < 32; ++i) {
    const int num_tokens = 140 + 11 * i, pages = (num_tokens + 63) / 64;
    std::vector<int32_t> ids;
    for (int p = 0; p < pages; ++p) ids.push_back(i * 8 + p);
    wants.push_back(decode.request(uint64_t(i + 1), {endpoint(server.port())}, make_prompt(num_tokens + 1, i), 0, ids));
    results.push_back(decode.start(wants.back()));
  }
  engine.wait_until([](const FakeProducer& e) { return e.num_begun == 32; });
  EXPECT_EQ(server.stats().num_active, 32);
  EXPECT_EQ(server.stats().num_connections, 1);
  engine.hold_at(INT32_MAX);
  for (size_t i = 0; i < results.size(); ++i) {
    const RemotePrefillResult result = results[i].get();
    ASSERT_TRUE(result.ok) << result.error;
    decode.expect_filled(wants[i]);
  }
  engine.wait_until([](const FakeProducer& e) { return e.num_open() == 0; });
  EXPECT_EQ(engine.num_released, 32);
  EXPECT_EQ(engine.num_released_twice, 0);
  EXPECT_EQ(server.stats().num_done, 32);
  EXPECT_EQ(decode.source.stats().num_done, 32);
}

// A worker that shuts down stops the server as soon as nothing is under way. Releasing the pages takes a while here,
// and the last word comes after it.
TEST(KvTransfer, AServerThatStopsWhenNothingIsUnderWayCutsNothing) {
  const KvLayout layout = make_layout(4, 64, 2048);
  for (int i = 0; i < 5; ++i) {
    FakeProducer engine(layout, 65);
    KvServer server(engine.producer(), server_options());
    Decode decode(layout, 64);
    std::vector<int32_t> pages(60);
    std::iota(pages.begin(), pages.end(), 0);
    auto result = decode.start(decode.request(1, {endpoint(server.port())}, make_prompt(60 * 64 + 1), 0, pages));
    engine.wait_until([](const FakeProducer& e) { return e.num_begun == 1; });
    while (server.stats().num_active > 0) std::this_thread::yield();
    server.stop();
    const RemotePrefillResult end = result.get();
    EXPECT_TRUE(end.ok) << end.error;
  }
}

// Pages travel while the engine computes: with the engine held in mid-prompt, the finished pages are there.
TEST(KvTransfer, PagesTravelWhileTheEngineComputes) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  KvServer server(engine.producer(), server_options());
  Decode decode(layout, 64);
  engine.hold_at(200);
  auto result = decode.start(decode.request(1, {endpoint(server.port())}, make_prompt(301), 0, {9, 8, 7, 6, 5}));
  while (server.stats().num_bytes < 3 * 3 * layout.page_bytes)
    std::this_thread::yield();  // three pages in three layers
  EXPECT_EQ(server.stats().num_bytes, 3 * 3 * layout.page_bytes);
  engine.hold_at(INT32_MAX);
  EXPECT_TRUE(result.get().ok);
}

TEST(KvTransfer, WorkersAreTriedInOrder) {
  const KvLayout layout = make_layout();
  FakeProducer broken(layout, 64), good(layout, 64);
  broken.fail_with("the forward pass threw");
  KvServer broken_server(broken.producer(), server_options()), good_server(good.producer(), server_options());
  std::string dead;
  {
    TcpListener listener("127.0.0.1", 0);
    dead = endpoint(listener.port());
  }
  Decode decode(layout, 64);
  const RemotePrefill want = decode.request(1, {dead, endpoint(broken_server.port()), endpoint(good_server.port())},
                                            make_prompt(100), 0, {1, 2});
  const RemotePrefillResult result = decode.run(want);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.worker, endpoint(good_server.port()));
  decode.expect_filled(want);
  EXPECT_EQ(decode.source.stats().failures.at("connect"), 1);
  EXPECT_EQ(decode.source.stats().failures.at("refused"), 1);
  broken.wait_until([](const FakeProducer& e) { return e.num_begun == 1 && e.num_open() == 0; });
}

TEST(KvTransfer, WhenAllFailTheReasonsAreNamed) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  engine.refuse_with("this worker is draining");
  KvServer server(engine.producer(), server_options());
  Decode decode(layout, 64);
  const RemotePrefillResult result =
      decode.run(decode.request(1, {endpoint(server.port()), "nowhere"}, make_prompt(100), 0, {1, 2}));
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.error, ::testing::HasSubstr("this worker is draining"));
  EXPECT_THAT(result.error, ::testing::HasSubstr("\"nowhere\" is no endpoint"));
  EXPECT_FALSE(decode.run(decode.request(2, {}, make_prompt(100), 0, {1, 2})).ok);
  decode.expect_untouched_but({});
}

TEST(KvTransfer, RequestsThatNoWorkerCanServeFailAtOnce) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  KvServer server(engine.producer(), server_options());
  Decode decode(layout, 64);
  const std::vector<std::string> workers{endpoint(server.port())};
  auto error_of = [&](RemotePrefill r) {
    const RemotePrefillResult result = decode.run(std::move(r));
    EXPECT_FALSE(result.ok);
    return result.error;
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(error_of(decode.request(1, workers, make_prompt(200), 0, {1})), HasSubstr("1 pages are held"));
  EXPECT_THAT(error_of(decode.request(2, workers, make_prompt(200), 0, {1, 2, 3, 64})),
              HasSubstr("page 64 of a pool of 64"));
  EXPECT_THAT(error_of(decode.request(3, workers, make_prompt(65), 1, {1})), HasSubstr("end before it"));
  EXPECT_THAT(error_of(decode.request(4, workers, make_prompt(5000), 78, {1})), HasSubstr("the worker takes 4096"));
  RemotePrefill other_rank = decode.request(5, workers, make_prompt(65), 0, {1});
  other_rank.into.rank = 1;
  EXPECT_THAT(error_of(other_rank), HasSubstr("rank 1 of 1"));
  EXPECT_THAT(error_of(decode.request(6, workers, make_prompt(65), 0, {1}, std::string(5000, 's'))),
              HasSubstr("cache salt"));
  decode.expect_untouched_but({});
  EXPECT_EQ(engine.num_begun, 0);
  EXPECT_TRUE(decode.run(decode.request(7, workers, make_prompt(65), 0, {1})).ok);
}

TEST(KvTransfer, TheServerBoundsItsTransfers) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  KvServerOptions options = server_options();
  options.max_transfers = 1;
  KvServer server(engine.producer(), options);
  Decode decode(layout, 64);
  engine.hold_at(10);
  auto first = decode.start(decode.request(1, {endpoint(server.port())}, make_prompt(65), 0, {1}));
  engine.wait_until([](const FakeProducer& e) { return e.num_begun == 1; });
  const RemotePrefillResult second = decode.run(decode.request(2, {endpoint(server.port())}, make_prompt(65), 0, {2}));
  EXPECT_FALSE(second.ok);
  EXPECT_THAT(second.error, ::testing::HasSubstr("1 transfers already"));
  engine.hold_at(INT32_MAX);
  EXPECT_TRUE(first.get().ok);
}

TEST(KvTransfer, CancelReachesTheWorkerAndStopsWriting) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  KvServer server(engine.producer(), server_options());
  Decode decode(layout, 64);
  engine.hold_at(100);
  std::atomic<bool> done_called{false};
  decode.source.start(decode.request(1, {endpoint(server.port())}, make_prompt(301), 0, {0, 1, 2, 3, 4}),
                      [&](RemotePrefillResult) { done_called = true; });
  while (server.stats().num_bytes == 0) std::this_thread::yield();
  decode.source.cancel(1);
  const auto snapshot = decode.memory.bytes;
  engine.wait_until([](const FakeProducer& e) { return e.num_released == 1; });
  engine.hold_at(INT32_MAX);
  // The connection goes on: a transfer behind it on the same stream sees every byte that was sent before.
  const RemotePrefill next = decode.request(2, {endpoint(server.port())}, make_prompt(65), 0, {9});
  ASSERT_TRUE(decode.run(next).ok);
  decode.expect_filled(next);
  for (int l = 0; l < layout.num_lanes; ++l)
    EXPECT_EQ(std::memcmp(decode.memory.pool.page(l, 0), snapshot[size_t(l)].data(), size_t(5 * layout.page_bytes)), 0);
  EXPECT_FALSE(done_called);
  EXPECT_EQ(engine.num_cancelled, 1);
  EXPECT_EQ(server.stats().num_connections, 1);
  EXPECT_EQ(decode.source.stats().num_cancelled, 1);
  decode.source.cancel(1);   // unknown by now
  decode.source.cancel(77);  // never known
}

// Under load, at moments that nobody chose: once cancel() returned, the pages belong to somebody else, who writes to
// them.
TEST(KvTransfer, CancelAtAnyMomentUnderLoad) {
  const KvLayout layout = make_layout(4, 16, 32);
  FakeProducer engine(layout, 2048, 64);
  KvServer server(engine.producer(), server_options());
  Decode decode(layout, 4 * 20);
  constexpr int kRounds = 60;
  std::atomic<int> num_ok{0}, num_cancelled{0};
  std::vector<std::thread> users;
  for (int u = 0; u < 4; ++u)
    users.emplace_back([&, u] {
      std::mt19937 random{unsigned(u)};
      std::vector<int32_t> pages;
      for (int p = 0; p < 20; ++p) pages.push_back(u * 20 + p);
      for (int round = 0; round < kRounds; ++round) {
        const uint64_t handle = uint64_t(u * kRounds + round + 1);
        const RemotePrefill want =
            decode.request(handle, {endpoint(server.port())}, make_prompt(310, int(handle)), 0, pages);
        auto result = std::make_shared<std::promise<RemotePrefillResult>>();
        auto future = result->get_future();
        decode.source.start(want, [result](RemotePrefillResult r) { result->set_value(std::move(r)); });
        const bool wait = random() % 4 == 0;
        if (!wait) {
          future.wait_for(std::chrono::microseconds(random() % 3000));  // any moment will do
          decode.source.cancel(handle);
        }
        if (wait || future.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
          const RemotePrefillResult r = future.get();
          EXPECT_TRUE(r.ok) << r.error;
          decode.expect_filled(want);
          ++num_ok;
        } else {
          ++num_cancelled;
        }
        for (int l = 0; l < layout.num_lanes; ++l)  // another request's
          for (int32_t p : pages) std::memset(decode.memory.pool.page(l, p), int(kCanary), size_t(layout.page_bytes));
        if (!wait)
          decode.expect_untouched_but([&] {
            std::set<int32_t> others;
            for (int32_t p = 0; p < 80; ++p)
              if (p / 20 != u) others.insert(p);
            return others;
          }());
      }
    });
  for (auto& t : users) t.join();
  EXPECT_EQ(num_ok + num_cancelled, 4 * kRounds);
  EXPECT_GT(num_ok, 0);
  engine.wait_until([](const FakeProducer& e) { return e.num_open() == 0; });
  EXPECT_EQ(engine.num_released_twice, 0);
  EXPECT_EQ(engine.num_free(), 2048);
  while (server.stats().num_active > 0) std::this_thread::yield();
  decode.expect_untouched_but({});
}

TEST(KvTransfer, DoneMayCancelAndStart) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  KvServer server(engine.producer(), server_options());
  Decode decode(layout, 64);
  std::promise<bool> second;
  decode.source.start(decode.request(1, {endpoint(server.port())}, make_prompt(65), 0, {1}), [&](RemotePrefillResult) {
    decode.source.cancel(1);
    decode.source.start(decode.request(2, {endpoint(server.port())}, make_prompt(65), 0, {2}),
                        [&](RemotePrefillResult r) { second.set_value(r.ok); });
  });
  EXPECT_TRUE(second.get_future().get());
}

TEST(KvTransfer, AStoppedServerReleasesEverythingAndFailsItsPeers) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  auto server = std::make_unique<KvServer>(engine.producer(), server_options());
  Decode decode(layout, 64);
  engine.hold_at(100);
  std::vector<std::future<RemotePrefillResult>> results;
  for (int i = 0; i < 8; ++i)
    results.push_back(decode.start(decode.request(uint64_t(i + 1), {endpoint(server->port())}, make_prompt(201), 0,
                                                  {i * 4, i * 4 + 1, i * 4 + 2, i * 4 + 3})));
  engine.wait_until([](const FakeProducer& e) { return e.num_begun == 8; });
  server->stop();
  EXPECT_EQ(engine.num_open(), 0);
  EXPECT_EQ(engine.num_released_twice, 0);
  for (auto& result : results) EXPECT_FALSE(result.get().ok);
  server.reset();
  engine.hold_at(INT32_MAX);  // progress of jobs that nobody waits for
}

TEST(KvTransfer, AStoppedSourceEndsInBoundedTimeAndCallsNobody) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  KvServer server(engine.producer(), server_options());
  engine.hold_at(100);
  {
    Decode decode(layout, 64);
    decode.source.start(decode.request(1, {endpoint(server.port())}, make_prompt(201), 0, {0, 1, 2, 3}),
                        [](RemotePrefillResult) { ADD_FAILURE(); });
    engine.wait_until([](const FakeProducer& e) { return e.num_begun == 1; });
  }
  engine.wait_until([](const FakeProducer& e) { return e.num_released == 1; });
}

TEST(KvTransfer, ASecretIsNeeded) {
  FakeProducer engine(make_layout(), 64);
  KvServerOptions server = server_options();
  server.secret = "";
  EXPECT_THROW(KvServer(engine.producer(), server), Error);
  KvClientOptions client = client_options();
  client.secret = "";
  EXPECT_THROW(RemotePrefillSource{client}, Error);
}

}  // namespace
}  // namespace moectl::test
