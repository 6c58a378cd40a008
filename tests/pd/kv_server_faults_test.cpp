// What a decode worker, or an unauthenticated peer, can do to the KV server: whatever it is, every job is released
// exactly once and the next peer is served. And the handshake, from both sides.
#include <random>

#include "tests/pd/kv_harness.h"

namespace moectl::test {
namespace {

using namespace transfer;
using ::testing::HasSubstr;

const KvLayout kLayout = make_layout();
constexpr std::chrono::milliseconds kLong{60000};

std::unique_ptr<TcpChannel> connect_to(const KvServer& server) {
  static const Waker never;
  return TcpChannel::connect({"127.0.0.1", server.port()}, kLong, never);
}
Bytes prefill_frame(uint8_t id, int num_tokens = 150) {
  return encode(Prefill{.id = {id}, .epoch = 1, .num_tokens = num_tokens, .prompt_ids = make_prompt(num_tokens + 1)});
}
// Reads until the peer closes the connection, which must happen before `within` has passed.
void read_to_the_end(TcpChannel& channel, std::chrono::milliseconds within = kLong) {
  std::array<std::byte, 4096> buffer;
  const auto deadline = std::chrono::steady_clock::now() + within;
  try {
    for (;;) channel.recv_some(buffer, within, deadline);
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::AnyOf(HasSubstr("closed the connection"), HasSubstr("reset by peer")));
  }
}
// Whether the connection is open and silent for `silence`. What it sent before that (a hello) is skipped.
bool stays_open(TcpChannel& channel, std::chrono::milliseconds silence) {
  std::array<std::byte, 4096> buffer;
  try {
    for (;;) channel.recv_some(buffer, silence);
  } catch (const Error& e) {
    return std::string_view(e.what()).find("was silent") != std::string_view::npos;
  }
}
void expect_serves(KvServer& server) {
  Decode decode(kLayout, 64);
  const RemotePrefillResult result = decode.run(decode.request(1, {endpoint(server.port())}, make_prompt(65), 0, {1}));
  EXPECT_TRUE(result.ok) << result.error;
}

// ------------------------------------------------------------------------------------------------ peers that leave
TEST(KvServerFaults, AClientThatVanishesLosesItsPages) {
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options());
  engine.hold_at(100);
  {
    auto channel = connect_to(server);
    HandPeer peer(*channel, decode_hello(kLayout));
    for (uint8_t id = 1; id <= 5; ++id) peer.say(prefill_frame(id));
    engine.wait_until([](const FakeProducer& e) { return e.num_begun == 5; });
  }
  engine.wait_until([](const FakeProducer& e) { return e.num_released == 5; });
  EXPECT_EQ(engine.num_cancelled, 5);
  EXPECT_EQ(engine.num_released_twice, 0);
  EXPECT_EQ(engine.num_free(), 64);
  engine.hold_at(INT32_MAX);
  expect_serves(server);
}

TEST(KvServerFaults, ASilentClientLosesItsLease) {
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options(short_timeouts()));
  engine.hold_at(100);
  auto channel = connect_to(server);
  HandPeer peer(*channel, decode_hello(kLayout));
  peer.say(prefill_frame(1));
  engine.wait_until([](const FakeProducer& e) { return e.num_released == 1; });
  EXPECT_EQ(engine.num_cancelled, 1);
}

// It says that it lives, but reads nothing: its sender waits, nobody else's does, and the pages come back.
TEST(KvServerFaults, AClientThatDoesNotReadLosesItsLeaseAndBlocksNobody) {
  const KvLayout layout = make_layout(4, 64, 2048);
  FakeProducer engine(layout, 65, 4096);
  KvServer server(engine.producer(), server_options(short_timeouts()));
  auto channel = connect_to(server);
  HandPeer peer(*channel, decode_hello(layout));
  peer.say(prefill_frame(1, 60 * 64));  // 31 MB, more than two sockets hold
  engine.wait_until([](const FakeProducer& e) { return e.num_begun == 1; });
  Decode decode(layout, 64);
  EXPECT_TRUE(decode.run(decode.request(1, {endpoint(server.port())}, make_prompt(65), 0, {1})).ok);
  try {
    while (server.stats().num_active > 0) {
      peer.say(encode_heartbeat());
      std::this_thread::yield();
    }
  } catch (const Error&) {  // the server hung up
  }
  engine.wait_until([](const FakeProducer& e) { return e.num_released == 2 && e.num_free() == 65; });
}

// ------------------------------------------------------------------------------------------------ peers that misbehave
TEST(KvServerFaults, RequestsOutOfBoundsAreRefused) {
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options());
  auto channel = connect_to(server);
  HandPeer peer(*channel, decode_hello(kLayout));
  auto reason_of = [&](Prefill request) {
    peer.say(encode(request));
    const auto frame = peer.next();
    EXPECT_EQ(frame.type, FrameType::kFailed);
    const Failed failed = decode_failed(frame.fields);
    EXPECT_EQ(failed.id, request.id);
    return failed.reason;
  };
  EXPECT_THAT(reason_of({.id = {1}, .num_tokens = 101, .prompt_ids = make_prompt(100)}), HasSubstr("prompt of 100"));
  EXPECT_THAT(reason_of({.id = {2}, .num_tokens = 0, .prompt_ids = make_prompt(100)}), HasSubstr("0 tokens wanted"));
  EXPECT_THAT(reason_of({.id = {3}, .first_page = 2, .num_tokens = 100, .prompt_ids = make_prompt(100)}),
              HasSubstr("end before it"));
  EXPECT_THAT(reason_of({.id = {4}, .first_page = INT32_MAX, .num_tokens = 100, .prompt_ids = make_prompt(100)}),
              HasSubstr("end before it"));
  EXPECT_EQ(engine.num_begun, 0);
  EXPECT_EQ(server.stats().num_active, 0);
}

TEST(KvServerFaults, ViolationsCloseTheConnectionAndReleaseItsJobs) {
  Bytes unknown_type = encode_heartbeat(), damaged = prefill_frame(9), huge = encode_heartbeat();
  unknown_type[8] = std::byte(42);
  damaged[30] ^= std::byte(1);
  huge[3] = std::byte(0xFF);  // 4 GB of fields
  const BlockFrame block = encode(Block{});
  const std::vector<Bytes> violations = {
      prefill_frame(1),  // the same transfer id again
      unknown_type,
      damaged,
      huge,
      encode(Prefill{.id = {9}, .num_tokens = 5000, .prompt_ids = make_prompt(5001)}),  // over the server's limit
      encode(Done{.id = {1}}),
      encode(Failed{.id = {1}}),
      encode(Hello{}),
      Bytes(block.begin(), block.end()),
  };
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options());
  engine.hold_at(100);
  int begun = 0;
  for (const Bytes& violation : violations) {
    auto channel = connect_to(server);
    HandPeer peer(*channel, decode_hello(kLayout));
    peer.say(prefill_frame(1));
    ++begun;
    engine.wait_until([&](const FakeProducer& e) { return e.num_begun == begun; });
    peer.say(violation);
    read_to_the_end(*channel);
    engine.wait_until([&](const FakeProducer& e) { return e.num_released == begun; });
  }
  EXPECT_EQ(engine.num_released_twice, 0);
  engine.hold_at(INT32_MAX);
  expect_serves(server);
}

TEST(KvServerFaults, CancelOfUnknownTransfersIsIgnored) {
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options());
  auto channel = connect_to(server);
  HandPeer peer(*channel, decode_hello(kLayout));
  peer.say(encode(Cancel{{7}, 1}));
  engine.hold_at(10);
  peer.say(prefill_frame(1));
  engine.wait_until([](const FakeProducer& e) { return e.num_begun == 1; });
  peer.say(encode(Cancel{{1}, 2}));  // of another epoch
  engine.hold_at(INT32_MAX);
  FrameReader::Frame frame;
  do frame = peer.next();
  while (frame.type == FrameType::kBlock);
  EXPECT_EQ(frame.type, FrameType::kDone);
}

TEST(KvServerFaults, MutatedConversationsLeaveNothingBehind) {
  FakeProducer engine(kLayout, 1024);
  KvServerOptions options = server_options();
  KvServer server(engine.producer(), options);
  std::mt19937 random{7};
  for (int i = 0; i < 300; ++i) {
    auto channel = connect_to(server);
    HandPeer peer(*channel, decode_hello(kLayout));
    Bytes bytes = prefill_frame(1);
    for (const Bytes& more : {encode(Cancel{{1}, 1}), prefill_frame(2), encode_heartbeat()})
      bytes.insert(bytes.end(), more.begin(), more.end());
    for (unsigned n = 1 + random() % 3; n > 0; --n) bytes[random() % bytes.size()] = std::byte(random());
    bytes.resize(random() % 4 ? bytes.size() : random() % bytes.size());
    try {
      peer.say(bytes);
    } catch (const Error&) {  // it hung up already
    }
  }
  while (server.stats().num_active > 0 || server.stats().num_connections > 0) std::this_thread::yield();
  engine.wait_until([](const FakeProducer& e) { return e.num_open() == 0; });
  EXPECT_EQ(engine.num_released_twice, 0);
  EXPECT_EQ(engine.num_free(), 1024);
  expect_serves(server);
}

// ------------------------------------------------------------------------------------------------ strangers
TEST(KvServerFaults, NothingIsReadBeforeTheProof) {
  Bytes huge = encode(Hello{});
  huge[2] = std::byte(0xFF);
  const std::string http = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  const std::vector<Bytes> openings = {
      prefill_frame(1),
      encode_heartbeat(),
      huge,
      Bytes(reinterpret_cast<const std::byte*>(http.data()),
            reinterpret_cast<const std::byte*>(http.data()) + http.size()),
  };
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options());
  for (const Bytes& opening : openings) {
    auto channel = connect_to(server);
    send(*channel, opening, kLong);
    read_to_the_end(*channel);
  }
  // A right hello, then a request in the place of the proof.
  auto channel = connect_to(server);
  send(*channel, encode(decode_hello(kLayout)), kLong);
  send(*channel, prefill_frame(1), kLong);
  read_to_the_end(*channel);
  // And a hello whose layout cannot be parsed, with a wrong proof: closed for the proof, the layout is not looked at.
  auto second = connect_to(server);
  Bytes hello = encode(decode_hello(kLayout));
  send(*second, hello, kLong);
  send(*second, encode(Proof{}), kLong);
  read_to_the_end(*second);
  while (server.stats().num_refused_peers < 6) std::this_thread::yield();
  EXPECT_EQ(engine.num_begun, 0);
  expect_serves(server);
}

// The oldest unauthenticated connections make room for new ones, and neither count against nor cut authenticated peers.
TEST(KvServerFaults, SilentConnectionsLockNobodyOut) {
  FakeProducer engine(kLayout, 64);
  KvServerOptions options = server_options();
  options.max_unauthenticated = 4;
  options.max_connections = 3;
  KvServer server(engine.producer(), options);
  auto channel = connect_to(server);
  HandPeer peer(*channel, decode_hello(kLayout));
  while (server.stats().num_connections < 1) std::this_thread::yield();
  std::vector<std::unique_ptr<TcpChannel>> silent;
  for (int i = 0; i < 24; ++i) silent.push_back(connect_to(server));
  for (int i = 0; i < 20; ++i) read_to_the_end(*silent[size_t(i)]);
  while (server.stats().num_refused_peers < 20) std::this_thread::yield();
  for (int i = 20; i < 24; ++i) EXPECT_TRUE(stays_open(*silent[size_t(i)], std::chrono::milliseconds(50))) << i;
  expect_serves(server);  // evicts one more
  read_to_the_end(*silent[20]);
  EXPECT_EQ(server.stats().num_refused_peers, 21);  // an eviction ends before the next connection is served
  peer.say(prefill_frame(1, 64));                   // the peer that was there before them is still served
  EXPECT_EQ(peer.next().type, FrameType::kBlock);
  silent.clear();
  while (server.stats().num_refused_peers < 24) std::this_thread::yield();
}

TEST(KvServerFaults, ASilentConnectionIsClosedWhenItsHandshakeTakesTooLong) {
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options(short_timeouts()));
  auto channel = connect_to(server);
  EXPECT_TRUE(stays_open(*channel, std::chrono::milliseconds(100)));
  read_to_the_end(*channel);
  while (server.stats().num_refused_peers < 1) std::this_thread::yield();
  EXPECT_EQ(server.stats().num_connections, 0);
}

TEST(KvServerFaults, AuthenticatedPeersAreBounded) {
  FakeProducer engine(kLayout, 64);
  KvServerOptions options = server_options();
  options.max_connections = 1;
  KvServer server(engine.producer(), options);
  auto channel = connect_to(server);
  HandPeer peer(*channel, decode_hello(kLayout));
  while (server.stats().num_connections < 1) std::this_thread::yield();
  auto second = connect_to(server);
  HandPeer second_peer(*second, decode_hello(kLayout));
  read_to_the_end(*second);
  while (server.stats().num_connections > 1) std::this_thread::yield();
  peer.say(prefill_frame(1, 64));
  EXPECT_EQ(peer.next().type, FrameType::kBlock);
  EXPECT_EQ(engine.num_begun, 1);
}

// ------------------------------------------------------------------------------------------------ the handshake
std::string refusal(const KvLayout& decode_layout, const KvServer& server, const std::string& secret = kSecret) {
  KvClientOptions options = client_options();
  options.secret = secret;
  Decode decode(decode_layout, 64, options);
  const RemotePrefillResult result =
      decode.run(decode.request(1, {endpoint(server.port())}, make_prompt(65), 0, {1, 2}));
  EXPECT_FALSE(result.ok);
  EXPECT_EQ(decode.source.stats().failures.at("handshake"), 1);
  decode.expect_untouched_but({});
  return result.error;
}

TEST(KvHandshake, DifferencesAreNamed) {
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options());
  KvLayout other = kLayout;
  other.model_hash = "model-b";
  EXPECT_THAT(refusal(other, server), HasSubstr("model hash: ours is model-b, the peer's is model-a"));
  other = kLayout;
  other.kv_format = "bf16-1";
  EXPECT_THAT(refusal(other, server), HasSubstr("KV format: ours is bf16-1, the peer's is f32-1"));
  EXPECT_THAT(refusal(make_layout(3, 64, 44), server), HasSubstr("bytes a page: ours is 2816, the peer's is 2560"));
  EXPECT_THAT(refusal(make_layout(4), server), HasSubstr("lanes: ours is 4, the peer's is 3"));
  EXPECT_THAT(refusal(make_layout(3, 32, 80), server), HasSubstr("tokens a page: ours is 32, the peer's is 64"));
  EXPECT_THAT(refusal(kLayout, server, "another secret"), HasSubstr("cluster secret"));
  while (server.stats().num_refused_peers < 6) std::this_thread::yield();
  EXPECT_EQ(engine.num_begun, 0);
  expect_serves(server);
}

// What an impostor answers, and the reason that the decode worker gives.
void expect_impostor(const std::function<void(TcpChannel&, FrameReader&)>& act, const std::string& reason,
                     KvTimeouts timeouts = patient_timeouts()) {
  FakeWorker impostor([&](TcpChannel& channel) {
    FrameReader reader(channel);
    reader.set_limits({});
    act(channel, reader);
    read_to_the_end(channel);
  });
  Decode decode(kLayout, 64, client_options(timeouts));
  const RemotePrefillResult result =
      decode.run(decode.request(1, {endpoint(impostor.port())}, make_prompt(65), 0, {1}));
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.error, HasSubstr(reason));
  decode.expect_untouched_but({});
}
void say(TcpChannel& channel, const Bytes& bytes) {
  send(channel, bytes, kLong);
}

TEST(KvHandshake, ImpostorsAreRefused) {
  const Hello right = prefill_hello(kLayout);
  expect_impostor(
      [&](TcpChannel& c, FrameReader&) {
        say(c, encode(right));
        say(c, encode(Proof{}));
      },
      "does not know the cluster secret");
  expect_impostor(  // our own proof, sent back
      [&](TcpChannel& c, FrameReader& reader) {
        say(c, encode(right));
        reader.next(kLong);
        say(c, encode(decode_proof(reader.next(kLong).fields)));
      },
      "does not know the cluster secret");
  expect_impostor([&](TcpChannel& c, FrameReader&) { say(c, encode(decode_hello(kLayout))); }, "this side is decode");
  Hello later = right;
  later.version = transfer::kVersion + 1;
  expect_impostor([&](TcpChannel& c, FrameReader&) { say(c, encode(later)); }, "version 3");
  expect_impostor([&](TcpChannel& c, FrameReader&) { say(c, Bytes(64, std::byte('H'))); }, "not accepted here");
  Bytes other_magic = encode(right);
  other_magic[kFrameHeaderBytes] ^= std::byte(1);
  expect_impostor([&](TcpChannel& c, FrameReader&) { say(c, other_magic); }, "damaged");
  expect_impostor([&](TcpChannel& c, FrameReader&) { c.shutdown(); }, "closed the connection");
  expect_impostor([&](TcpChannel&, FrameReader&) {}, "took too long", short_timeouts());
}

// A proof is good for one connection: a recorded conversation does not open another.
TEST(KvHandshake, ARecordedConversationDoesNotOpenAnother) {
  FakeProducer engine(kLayout, 64);
  KvServer server(engine.producer(), server_options());
  Bytes hello, proof;
  FakeWorker recorder([&](TcpChannel& client) {  // between the two, passing everything on
    auto onward = connect_to(server);
    FrameReader from_client(client), from_server(*onward);
    from_client.set_limits({});
    from_server.set_limits({});
    const auto wire = [](const FrameReader::Frame& f) { return Bytes(f.fields.begin(), f.fields.end()); };
    hello = wire(from_client.next(kLong));
    Hello h = decode_hello_start(hello);
    decode_hello_layout(hello, h);
    say(*onward, hello = encode(h));
    Bytes answer = wire(from_server.next(kLong));
    Hello a = decode_hello_start(answer);
    decode_hello_layout(answer, a);
    say(client, encode(a));
    say(*onward, proof = encode(decode_proof(from_client.next(kLong).fields)));
    from_server.next(kLong);  // the server's proof: the recorded one was good
  });
  {
    Decode decode(kLayout, 64);
    EXPECT_FALSE(decode.run(decode.request(1, {endpoint(recorder.port())}, make_prompt(65), 0, {1})).ok);
  }
  ASSERT_FALSE(proof.empty());
  while (server.stats().num_connections > 0) std::this_thread::yield();
  const int64_t refused = server.stats().num_refused_peers;
  auto channel = connect_to(server);
  say(*channel, hello);
  say(*channel, proof);
  read_to_the_end(*channel);
  while (server.stats().num_refused_peers == refused) std::this_thread::yield();
}

}  // namespace
}  // namespace moectl::test
