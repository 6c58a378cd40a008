// What a prefill worker can do wrong, and what becomes of it on the decode side: ok=false with a reason, or the next
// worker, and no byte where it does not belong.
#include <random>

#include "tests/pd/kv_harness.h"

namespace moectl::test {
namespace {

using namespace transfer;
using ::testing::HasSubstr;

struct Corruption {
  std::string name;
  std::function<void(HandPeer&, GoodStream&)> send;  // instead of the right stream
  std::string reason;
};
void PrintTo(const Corruption& c, std::ostream* os) {
  *os << c.name;
}

// The first block with something changed, its frame made anew.
std::function<void(HandPeer&, GoodStream&)> first_block(std::function<void(GoodStream::Piece&)> change) {
  return [change](HandPeer& peer, GoodStream& stream) {
    change(stream.blocks[0]);
    peer.say(stream.blocks[0].frame());
  };
}
std::function<void(HandPeer&, GoodStream&)> last_word(std::function<void(Done&)> change) {
  return [change](HandPeer& peer, GoodStream& stream) {
    change(stream.done);
    peer.say(stream.all());
  };
}
std::function<void(HandPeer&, GoodStream&)> bytes(Bytes frame) {
  return [frame](HandPeer& peer, GoodStream&) { peer.say(frame); };
}
Bytes frame_of_type(uint8_t type) {
  Bytes frame = encode_heartbeat();
  frame[8] = std::byte(type);
  return frame;
}

std::vector<Corruption> corruptions() {
  return {
      {"payload_bit", first_block([](auto& p) { p.payload[17] ^= std::byte(4); }), "checksum does not match"},
      {"checksum", first_block([](auto& p) { p.block.checksum ^= 1; }), "checksum does not match"},
      {"lane_out_of_range", first_block([](auto& p) { p.block.lane = 3; }), "lane 3"},
      {"lane_huge", first_block([](auto& p) { p.block.lane = UINT32_MAX; }), "lane 4294967295"},
      {"page_out_of_range", first_block([](auto& p) { p.block.page = 3; }), "page 3"},
      {"page_huge", first_block([](auto& p) { p.block.page = UINT32_MAX; }), "page 4294967295"},
      {"transfer_id", first_block([](auto& p) { p.block.id[3] ^= 1; }), "a transfer that is not open"},
      {"epoch", first_block([](auto& p) { ++p.block.epoch; }), "epoch"},
      {"longer_than_a_page", first_block([](auto& p) {
         p.payload.push_back(std::byte(0));
         ++p.block.num_bytes;
         p.block.checksum = checksum(p.payload);
       }),
       "bytes of payload; at most"},
      {"shorter", first_block([](auto& p) {
         p.payload.pop_back();
         --p.block.num_bytes;
         p.block.checksum = checksum(p.payload);
       }),
       "expected"},
      {"other_page_size",  // a whole page where the last one is partial
       [](HandPeer& peer, GoodStream& s) {
         auto& p = s.blocks[2];
         p.payload.resize(s.blocks[0].payload.size());
         p.block.num_bytes = s.blocks[0].block.num_bytes;
         p.block.checksum = checksum(p.payload);
         peer.say(p.frame());
       },
       "expected"},
      {"header_bit",
       [](HandPeer& peer, GoodStream& s) {
         Bytes frame = s.blocks[0].frame();
         frame[kFrameHeaderBytes + 25] ^= std::byte(1);
         peer.say(frame);
       },
       "the frame's check does not match"},
      {"unknown_type", bytes(frame_of_type(99)), "type 99"},
      {"hello_again", bytes(encode(Hello{})), "Hello"},
      {"prefill_to_decode", bytes(encode(Prefill{.num_tokens = 1, .prompt_ids = {1, 2}})), "Prefill"},
      {"noise", bytes(Bytes(4096, std::byte(0xA5))), "is not accepted here"},
      {"done_too_early", [](HandPeer& peer, GoodStream& s) { peer.say(encode(s.done)); }, "0 of 9 KV blocks arrived"},
      {"failed_of_other_epoch",
       [](HandPeer& peer, GoodStream& s) {
         peer.say(encode(Failed{s.done.id, s.done.epoch + 1, "no"}));
       },
       "another epoch"},
      {"truncated_at_once", [](HandPeer& peer, GoodStream&) { peer.channel.shutdown(); }, "closed the connection"},
  };
}

class KvCorruption : public ::testing::TestWithParam<Corruption> {};

TEST_P(KvCorruption, EndsWithAReasonAndWithoutAByte) {
  const KvLayout layout = make_layout();
  FakeWorker worker([&](TcpChannel& channel) {
    HandPeer peer(channel, prefill_hello(layout));
    GoodStream stream(peer.next_prefill(), layout);
    GetParam().send(peer, stream);
    peer.drain();
  });
  Decode decode(layout, 64);
  const RemotePrefillResult result =
      decode.run(decode.request(1, {endpoint(worker.port())}, make_prompt(151), 0, {5, 6, 7}));
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.error, HasSubstr(GetParam().reason));
  EXPECT_THAT(result.error, HasSubstr(endpoint(worker.port())));
  decode.expect_untouched_but({});
}
INSTANTIATE_TEST_SUITE_P(All, KvCorruption, ::testing::ValuesIn(corruptions()),
                         [](const auto& info) { return info.param.name; });

// Faults after good blocks: what was written stays within the request's pages, and the transfer is not called complete.
std::vector<Corruption> late_corruptions() {
  return {
      {"digest", last_word([](Done& d) { d.digest ^= 1; }), "digest"},
      {"num_blocks", last_word([](Done& d) { ++d.num_blocks; }), "counts 10 KV blocks"},
      {"num_bytes", last_word([](Done& d) { --d.num_bytes; }), "KV blocks of"},
      {"done_epoch", last_word([](Done& d) { ++d.epoch; }), "epoch"},
      {"done_id", last_word([](Done& d) { d.id[0] ^= 1; }), "a transfer that is not open"},
      {"a_nan_in_done", last_word([](Done& d) { d.compute_seconds = std::nan(""); }), "compute seconds"},
      {"replayed_block",
       [](HandPeer& peer, GoodStream& s) {
         peer.say(s.blocks[4].frame());
         peer.say(s.blocks[4].frame());
       },
       "came twice"},
      {"one_block_missing",
       [](HandPeer& peer, GoodStream& s) {
         s.blocks.erase(s.blocks.begin() + 3);
         peer.say(s.all());
       },
       "8 of 9 KV blocks arrived"},
      {"blocks_in_another_order",
       [](HandPeer& peer, GoodStream& s) {
         std::swap(s.blocks[1], s.blocks[7]);
         peer.say(s.all());
       },
       "digest"},
      {"truncated_in_a_block",
       [](HandPeer& peer, GoodStream& s) {
         const Bytes all = s.all();
         peer.say(ByteSpan(all).first(all.size() / 2));
         peer.channel.shutdown();
       },
       "closed the connection"},
  };
}

class KvLateCorruption : public ::testing::TestWithParam<Corruption> {};

TEST_P(KvLateCorruption, NeverCompletes) {
  const KvLayout layout = make_layout();
  FakeWorker worker([&](TcpChannel& channel) {
    HandPeer peer(channel, prefill_hello(layout));
    GoodStream stream(peer.next_prefill(), layout);
    GetParam().send(peer, stream);
    peer.drain();
  });
  FakeProducer engine(layout, 64);
  KvServer good(engine.producer(), server_options());
  Decode decode(layout, 64);
  RemotePrefill want = decode.request(1, {endpoint(worker.port())}, make_prompt(151), 0, {5, 6, 7});
  const RemotePrefillResult result = decode.run(want);
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.error, HasSubstr(GetParam().reason));
  decode.expect_untouched_but({5, 6, 7});
  want.handle = 2;
  want.workers.push_back(endpoint(good.port()));
  const RemotePrefillResult second = decode.run(want);  // the bad one first, then the good one
  ASSERT_TRUE(second.ok) << second.error;
  decode.expect_filled(want);
}
INSTANTIATE_TEST_SUITE_P(All, KvLateCorruption, ::testing::ValuesIn(late_corruptions()),
                         [](const auto& info) { return info.param.name; });

TEST(KvSourceFaults, AnyMutationOfTheStreamIsNoticed) {
  const KvLayout layout = make_layout(2, 16, 12);
  std::mt19937 random{20};
  FakeWorker worker([&](TcpChannel& channel) {
    HandPeer peer(channel, prefill_hello(layout));
    Bytes bytes = GoodStream(peer.next_prefill(), layout).all();
    const size_t at = random() % bytes.size(), n = 1 + random() % 40;
    switch (random() % 3) {
      case 0:
        bytes[at] ^= std::byte(1 << random() % 8);
        break;
      case 1:
        bytes.erase(bytes.begin() + long(at), bytes.begin() + long(std::min(at + n, bytes.size())));
        break;
      case 2:
        bytes.insert(bytes.begin() + long(at), n, std::byte(random() | 1));
        break;
    }
    peer.say(bytes);
    channel.shutdown();
  });
  Decode decode(layout, 64);
  for (uint64_t i = 1; i <= 400; ++i) {
    const RemotePrefillResult result =
        decode.run(decode.request(i, {endpoint(worker.port())}, make_prompt(60), 1, {9, 8, 7}));
    // Bytes behind the last word come too late to matter.
    if (result.ok)
      decode.expect_filled(decode.request(i, {}, make_prompt(60), 1, {9, 8, 7}));
    else
      EXPECT_NE(result.error, "");
    decode.expect_untouched_but({7, 8, 9});
  }
  EXPECT_LT(decode.source.stats().num_done, 10);
}

// Two transfers on a connection: one's damaged block fails both, and a third, on the next connection, is well.
TEST(KvSourceFaults, AViolationFailsTheConnectionAndTheNextIsFresh) {
  const KvLayout layout = make_layout();
  std::atomic<int> connections{0};
  FakeWorker worker([&](TcpChannel& channel) {
    HandPeer peer(channel, prefill_hello(layout));
    if (++connections == 1) {
      GoodStream first(peer.next_prefill(), layout);
      peer.next_prefill();
      first.blocks[0].payload[0] ^= std::byte(1);
      peer.say(first.blocks[0].frame());
    } else {
      peer.say(GoodStream(peer.next_prefill(), layout).all());
    }
    peer.drain();
  });
  Decode decode(layout, 64);
  auto first = decode.start(decode.request(1, {endpoint(worker.port())}, make_prompt(151), 0, {5, 6, 7}));
  auto second = decode.start(decode.request(2, {endpoint(worker.port())}, make_prompt(151), 0, {8, 9, 10}));
  EXPECT_FALSE(first.get().ok);
  EXPECT_FALSE(second.get().ok);
  decode.expect_untouched_but({});
  const RemotePrefill third = decode.request(3, {endpoint(worker.port())}, make_prompt(151), 0, {11, 12, 13});
  EXPECT_TRUE(decode.run(third).ok);
  decode.expect_filled(third);
  EXPECT_EQ(connections, 2);
}

// ------------------------------------------------------------------------------------------------ silence
TEST(KvSourceFaults, ASilentWorkerIsLeftForTheNext) {
  const KvLayout layout = make_layout();
  FakeWorker silent([&](TcpChannel& channel) {
    HandPeer peer(channel, prefill_hello(layout));
    GoodStream stream(peer.next_prefill(), layout);
    peer.say(stream.blocks[0].frame());
    peer.drain();  // says no more, not even that it lives
  });
  FakeProducer engine(layout, 64);
  KvServer good(engine.producer(), server_options(short_timeouts()));
  Decode decode(layout, 64, client_options(short_timeouts()));
  const RemotePrefill want =
      decode.request(1, {endpoint(silent.port()), endpoint(good.port())}, make_prompt(151), 0, {5, 6, 7});
  const RemotePrefillResult result = decode.run(want);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.worker, endpoint(good.port()));
  decode.expect_filled(want);
  EXPECT_EQ(decode.source.stats().failures.at("closed"), 1);
}

TEST(KvSourceFaults, AWorkerThatLivesButNeverAnswersTimesOut) {
  const KvLayout layout = make_layout();
  std::promise<Cancel> cancel;
  FakeWorker busy([&](TcpChannel& channel) {
    HandPeer peer(channel, prefill_hello(layout));
    peer.next_prefill();
    cancel.set_value(decode_cancel(peer.next().fields));
    peer.drain();
  });
  FakeProducer engine(layout, 64);
  KvServer good(engine.producer(), server_options());
  KvClientOptions options = client_options();
  options.attempt_timeout = KvClientOptions::Millis(300);
  Decode decode(layout, 64, options);
  auto result = decode.start(decode.request(1, {endpoint(busy.port())}, make_prompt(151), 0, {5, 6, 7}));
  EXPECT_THAT(result.get().error, HasSubstr("not done in time"));
  EXPECT_EQ(cancel.get_future().get().epoch, 1u);
  EXPECT_EQ(decode.source.stats().failures.at("timeout"), 1);
  decode.expect_untouched_but({});
}

TEST(KvSourceFaults, AllWorkersTogetherHaveALimit) {
  const KvLayout layout = make_layout();
  FakeWorker busy([&](TcpChannel& channel) { HandPeer(channel, prefill_hello(layout)).drain(); });
  KvClientOptions options = client_options();
  options.total_timeout = KvClientOptions::Millis(300);
  Decode decode(layout, 64, options);
  const RemotePrefillResult result =
      decode.run(decode.request(1, {endpoint(busy.port()), endpoint(busy.port())}, make_prompt(151), 0, {5, 6, 7}));
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.error, HasSubstr("over the limit of 300 ms"));
}

TEST(KvSourceFaults, AWorkerThatIsDownFailsFastAndComesBack) {
  const KvLayout layout = make_layout();
  uint16_t port;
  {
    TcpListener listener("127.0.0.1", 0);
    port = listener.port();
  }
  KvClientOptions options = client_options();
  options.first_backoff = options.max_backoff = KvClientOptions::Millis(3'600'000);
  Decode patient(layout, 64, options);
  Decode decode(layout, 64);
  EXPECT_FALSE(patient.run(patient.request(1, {endpoint(port)}, make_prompt(65), 0, {1})).ok);
  EXPECT_FALSE(decode.run(decode.request(1, {endpoint(port)}, make_prompt(65), 0, {1})).ok);
  FakeProducer engine(layout, 64);
  KvServerOptions server = server_options();
  server.port = port;
  KvServer good(engine.producer(), server);
  // Within the back-off nobody waits for a connection; after it the worker is used again.
  EXPECT_THAT(patient.run(patient.request(2, {endpoint(port)}, make_prompt(65), 0, {1})).error, HasSubstr("refused"));
  uint64_t handle = 2;
  while (!decode.run(decode.request(handle, {endpoint(port)}, make_prompt(65), 0, {1})).ok) ++handle;
}

TEST(KvSourceFaults, ConnectionsAreBoundedAndUnusedOnesMakeRoom) {
  const KvLayout layout = make_layout();
  FakeProducer engine(layout, 64);
  KvServer first(engine.producer(), server_options()), second(engine.producer(), server_options());
  KvClientOptions options = client_options();
  options.max_peers = 1;
  Decode decode(layout, 64, options);
  engine.hold_at(1);
  auto result = decode.start(decode.request(1, {endpoint(first.port())}, make_prompt(65), 0, {1}));
  engine.wait_until([](const FakeProducer& e) { return e.num_begun == 1; });
  EXPECT_THAT(decode.run(decode.request(2, {endpoint(second.port())}, make_prompt(65), 0, {2})).error,
              HasSubstr("are in use"));
  engine.hold_at(INT32_MAX);
  EXPECT_TRUE(result.get().ok);
  EXPECT_TRUE(decode.run(decode.request(3, {endpoint(second.port())}, make_prompt(65), 0, {2})).ok);
}

}  // namespace
}  // namespace moectl::test
