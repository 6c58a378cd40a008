// The transfer's messages and state: round trips, bounds, which blocks travel in which order, and mutations by the
// thousand.
#include "core/pd/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "core/base/error.h"

namespace moectl::transfer {
namespace {

using ::testing::HasSubstr;
using From = FrameLimits::From;

constexpr FrameLimits kStranger{};
constexpr FrameLimits kDecode{.from = From::kDecode, .max_prompt_tokens = 1000};
constexpr FrameLimits kPrefillSide{.from = From::kPrefill, .max_payload_bytes = 4096};

std::span<const std::byte, kFrameHeaderBytes> header_of(ByteSpan frame) {
  return std::span<const std::byte, kFrameHeaderBytes>(frame.data(), kFrameHeaderBytes);
}

// What FrameReader does with bytes that lie in memory.
struct Parsed {
  FrameType type;
  ByteSpan fields, payload;
};
Parsed parse(ByteSpan frame, const FrameLimits& limits) {
  if (frame.size() < kFrameHeaderBytes) throw Error(Code::kBadData, "short");
  const FrameHeader header = read_frame_header(header_of(frame), limits);
  EXPECT_LE(header.total_bytes(), limits.max_frame_bytes());
  if (frame.size() < header.total_bytes()) throw Error(Code::kBadData, "short");
  const ByteSpan fields = frame.subspan(kFrameHeaderBytes, header.field_bytes);
  verify_frame(header_of(frame), fields);
  return {header.type, fields, frame.subspan(kFrameHeaderBytes + header.field_bytes, header.payload_bytes)};
}

Bytes fields_of(ByteSpan frame) {
  uint32_t size;
  std::memcpy(&size, frame.data(), sizeof size);
  return {frame.begin() + kFrameHeaderBytes, frame.begin() + kFrameHeaderBytes + size};
}
std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadData);
    return e.what();
  }
  return "no error";
}

const TransferId kId{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

Hello sample_hello() {
  Hello hello{.role = Role::kPrefill, .max_prompt_tokens = 4096};
  for (size_t i = 0; i < kNonceBytes; ++i) hello.nonce[i] = uint8_t(i * 3);
  hello.layout = {.model_hash = "abc", .kv_format = "f32-3", .num_lanes = 61, .page_size = 64, .page_bytes = 147456};
  return hello;
}
Prefill sample_prefill() {
  return {.id = kId,
          .epoch = 1ull << 40,
          .first_page = 2,
          .num_tokens = 150,
          .request_id = "req",
          .cache_salt = "s",
          .prompt_ids = {5, -1, 1 << 30}};
}

// ------------------------------------------------------------------------------------------------ codec
TEST(TransferCodec, EveryMessageComesBack) {
  const Hello hello = sample_hello();
  const Bytes hello_frame = encode(hello);
  Parsed p = parse(hello_frame, kStranger);
  Hello h = decode_hello_start(p.fields);
  EXPECT_TRUE(h.layout.model_hash.empty());
  decode_hello_layout(p.fields, h);
  EXPECT_EQ(h.version, kVersion);
  EXPECT_EQ(h.role, Role::kPrefill);
  EXPECT_EQ(h.nonce, hello.nonce);
  EXPECT_EQ(h.layout, hello.layout);
  EXPECT_EQ(h.max_prompt_tokens, 4096);

  const Bytes request = encode(sample_prefill());
  const Prefill r = decode_prefill(parse(request, kDecode).fields, 1000);
  EXPECT_EQ(r.id, kId);
  EXPECT_EQ(r.epoch, 1ull << 40);
  EXPECT_EQ(r.first_page, 2);
  EXPECT_EQ(r.num_tokens, 150);
  EXPECT_EQ(r.request_id, "req");
  EXPECT_EQ(r.cache_salt, "s");
  EXPECT_EQ(r.prompt_ids, sample_prefill().prompt_ids);

  const Bytes cancel = encode(Cancel{kId, 7});
  EXPECT_EQ(decode_cancel(parse(cancel, kDecode).fields).epoch, 7u);

  const Block block{.id = kId, .epoch = 9, .lane = 60, .page = 12, .num_bytes = 4000, .checksum = 0x1234567890abcdef};
  const BlockFrame block_frame = encode(block);
  Bytes frame(block_frame.begin(), block_frame.end());
  frame.resize(frame.size() + 4000);
  p = parse(frame, kPrefillSide);
  EXPECT_EQ(p.payload.size(), 4000u);
  const Block b = decode_block(p.fields);
  EXPECT_EQ(b.id, kId);
  EXPECT_EQ(b.lane, 60u);
  EXPECT_EQ(b.page, 12u);
  EXPECT_EQ(b.num_bytes, 4000u);
  EXPECT_EQ(b.checksum, block.checksum);

  const Bytes done_frame = encode(Done{kId, 1, 2, 3, 4, 5, 0.5, 0.25, 0.125});
  const Done done = decode_done(parse(done_frame, kPrefillSide).fields);
  EXPECT_EQ(done.digest, 4u);
  EXPECT_EQ(done.num_cached_tokens, 5);
  EXPECT_EQ(done.transfer_seconds, 0.125);

  const Bytes failed_frame = encode(Failed{kId, 1, std::string(2000, 'x')});
  EXPECT_EQ(decode_failed(parse(failed_frame, kPrefillSide).fields).reason, std::string(kMaxReasonBytes, 'x'));
}

TEST(TransferCodec, TheWireIsWhatTheDocumentSays) {
  const Bytes frame = encode(Cancel{kId, 0x0102030405060708});
  ASSERT_EQ(frame.size(), 16u + 16 + 8);
  const auto at = [&](size_t i) { return int(frame[i]); };
  EXPECT_EQ(at(0), 24);  // field bytes, little-endian
  EXPECT_EQ(at(1), 0);
  EXPECT_EQ(at(4), 0);   // payload bytes
  EXPECT_EQ(at(8), 4);   // type Cancel
  EXPECT_EQ(at(16), 1);  // the id
  EXPECT_EQ(at(32), 8);  // the epoch, little-endian
  EXPECT_EQ(at(39), 1);
}

TEST(TransferCodec, UnknownTrailingFieldsAreSkipped) {
  const auto longer = [](ByteSpan frame) {
    Bytes fields = fields_of(frame);
    fields.resize(fields.size() + 9, std::byte(0xAB));
    return fields;
  };
  Hello hello = decode_hello_start(longer(encode(sample_hello())));
  decode_hello_layout(longer(encode(sample_hello())), hello);
  EXPECT_EQ(hello.layout, sample_hello().layout);
  EXPECT_EQ(decode_prefill(longer(encode(sample_prefill())), 1000).prompt_ids, sample_prefill().prompt_ids);
  EXPECT_EQ(decode_cancel(longer(encode(Cancel{kId, 3}))).epoch, 3u);
  EXPECT_EQ(decode_block(longer(encode(Block{.id = kId, .checksum = 6}))).checksum, 6u);
  EXPECT_EQ(decode_done(longer(encode(Done{kId, 1, 2}))).num_blocks, 2u);
  EXPECT_EQ(decode_failed(longer(encode(Failed{kId, 1, "why"}))).reason, "why");
}

TEST(TransferCodec, EveryMessageCutAnywhereIsRefused) {
  const auto cut = [](const Bytes& fields, const std::function<void(ByteSpan)>& decode) {
    for (size_t n = 0; n < fields.size(); ++n) EXPECT_THROW(decode(ByteSpan(fields).first(n)), Error) << n;
    EXPECT_NO_THROW(decode(fields));
  };
  cut(fields_of(encode(sample_hello())), [](ByteSpan f) {
    Hello hello = decode_hello_start(f);
    decode_hello_layout(f, hello);
  });
  cut(fields_of(encode(Proof{})), [](ByteSpan f) { decode_proof(f); });
  cut(fields_of(encode(sample_prefill())), [](ByteSpan f) { decode_prefill(f, 1000); });
  cut(fields_of(encode(Cancel{})), [](ByteSpan f) { decode_cancel(f); });
  cut(fields_of(encode(Block{})), [](ByteSpan f) { decode_block(f); });
  cut(fields_of(encode(Done{})), [](ByteSpan f) { decode_done(f); });
  cut(fields_of(encode(Failed{kId, 1, "reason"})), [](ByteSpan f) { decode_failed(f); });
}

TEST(TransferCodec, FieldsOutOfRangeAreRefusedByName) {
  Bytes fields = fields_of(encode(sample_prefill()));
  EXPECT_THAT(error_of([&] { decode_prefill(fields, 2); }), HasSubstr("num_tokens is 150; at most 2"));
  const size_t length_at = 16 + 8 + 8 + 8 + 2 + 3 + 2 + 1;
  ASSERT_EQ(int(fields[length_at]), 3);
  fields[length_at] = std::byte(4);  // one id more than there is
  EXPECT_THAT(error_of([&] { decode_prefill(fields, 1000); }), HasSubstr("states 4 prompt ids"));
  fields[length_at + 7] = std::byte(0x80);
  EXPECT_THAT(error_of([&] { decode_prefill(fields, 1000); }), HasSubstr("prompt length"));
  for (double value : {-1.0, double(NAN), double(INFINITY)})
    EXPECT_THAT(error_of([&] { decode_done(fields_of(encode(Done{.queue_seconds = value}))); }),
                HasSubstr("queue seconds"));
  EXPECT_THROW(encode(Prefill{.cache_salt = std::string(kMaxSaltBytes + 1, 's')}), Error);
}

TEST(TransferCodec, FramesAreTakenWhereTheyBelongAndNoLonger) {
  const Bytes hello = encode(sample_hello()), proof = encode(Proof{}), prefill = encode(sample_prefill()),
              cancel = encode(Cancel{}), heartbeat = encode_heartbeat(), done = encode(Done{}),
              failed = encode(Failed{});
  const BlockFrame block_frame = encode(Block{});
  const Bytes block(block_frame.begin(), block_frame.end());
  const auto taken = [](const Bytes& frame, const FrameLimits& limits) {
    try {
      read_frame_header(header_of(frame), limits);
      return true;
    } catch (const Error&) {
      return false;
    }
  };
  for (const Bytes* f : {&hello, &proof})
    EXPECT_TRUE(taken(*f, kStranger) && !taken(*f, kDecode) && !taken(*f, kPrefillSide));
  for (const Bytes* f : {&prefill, &cancel})
    EXPECT_TRUE(!taken(*f, kStranger) && taken(*f, kDecode) && !taken(*f, kPrefillSide));
  for (const Bytes* f : {&block, &done, &failed})
    EXPECT_TRUE(!taken(*f, kStranger) && !taken(*f, kDecode) && taken(*f, kPrefillSide));
  EXPECT_TRUE(!taken(heartbeat, kStranger) && taken(heartbeat, kDecode) && taken(heartbeat, kPrefillSide));

  const auto with = [](Bytes frame, size_t at, uint32_t value) {
    std::memcpy(frame.data() + at, &value, 4);
    return frame;
  };
  EXPECT_FALSE(taken(with(prefill, 0, UINT32_MAX), kDecode));
  EXPECT_FALSE(taken(with(prefill, 0, 64 << 10), kDecode));
  EXPECT_FALSE(taken(with(prefill, 4, 1), kDecode));  // a payload where none belongs
  EXPECT_TRUE(taken(with(block, 4, 4096), kPrefillSide));
  EXPECT_FALSE(taken(with(block, 4, 4097), kPrefillSide));
  for (uint32_t type : {0u, 9u, 255u, 65535u, 1u << 16 | 5u}) EXPECT_FALSE(taken(with(heartbeat, 8, type), kDecode));
}

// Whatever the bytes: a message or an Error{kBadData}, never more.
TEST(TransferCodec, MutatedFramesAreReadOrRefused) {
  std::mt19937 random{2024};
  const BlockFrame block_frame = encode(Block{.id = kId, .lane = 1, .num_bytes = 8});
  Bytes block(block_frame.begin(), block_frame.end());
  block.resize(block.size() + 8);
  const std::vector<Bytes> seeds = {
      encode(sample_hello()), encode(Proof{}), encode(sample_prefill()),   encode(Cancel{kId, 1}),
      encode_heartbeat(),     block,           encode(Done{kId, 1, 2, 3}), encode(Failed{kId, 1, "why"})};
  int refused = 0, read = 0;
  const auto decode = [](FrameType type, ByteSpan fields) {
    switch (type) {
      case FrameType::kHello: {
        Hello hello = decode_hello_start(fields);
        decode_hello_layout(fields, hello);
        break;
      }
      case FrameType::kProof:
        decode_proof(fields);
        break;
      case FrameType::kPrefill:
        decode_prefill(fields, 1000);
        break;
      case FrameType::kCancel:
        decode_cancel(fields);
        break;
      case FrameType::kHeartbeat:
        break;
      case FrameType::kBlock:
        decode_block(fields);
        break;
      case FrameType::kDone:
        decode_done(fields);
        break;
      case FrameType::kFailed:
        decode_failed(fields);
        break;
    }
  };
  for (int i = 0; i < 60000; ++i) {
    Bytes frame = seeds[random() % seeds.size()];
    for (unsigned n = 1 + random() % 4; n > 0; --n) {
      const size_t at = random() % frame.size();
      switch (random() % 3) {
        case 0:
          frame[at] = std::byte(random());
          break;
        case 1:
          frame[at] ^= std::byte(1 << random() % 8);
          break;
        case 2:
          frame.resize(std::max<size_t>(at, 1));
          break;
      }
    }
    for (const FrameLimits& limits : {kStranger, kDecode, kPrefillSide}) {
      try {
        if (i % 2) {  // as a reader would
          const Parsed p = parse(frame, limits);
          decode(p.type, p.fields);
        } else if (frame.size() >= kFrameHeaderBytes) {  // past the check, as a peer that computes it right
          const FrameHeader header = read_frame_header(header_of(frame), limits);
          decode(header.type, ByteSpan(frame).subspan(kFrameHeaderBytes));
        }
        ++read;
      } catch (const Error& e) {
        ASSERT_EQ(e.code(), Code::kBadData) << e.what();
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(read, 1000);
}

// ------------------------------------------------------------------------------------------------ state
struct Memory {
  explicit Memory(const TransferPlan& plan, int64_t num_pages)
      : bytes(size_t(plan.num_lanes * num_pages * plan.page_bytes)) {
    pool = {.num_lanes = plan.num_lanes,
            .num_pages = num_pages,
            .page_size = plan.page_size,
            .page_bytes = plan.page_bytes,
            .page_stride = plan.page_bytes};
    for (int l = 0; l < plan.num_lanes; ++l) pool.lanes.push_back({bytes.data() + l * num_pages * plan.page_bytes});
  }
  Bytes bytes;
  KvPool pool;
};

const TransferPlan kPlan{
    .id = kId, .epoch = 3, .num_lanes = 2, .page_size = 4, .page_bytes = 40, .first_page = 1, .num_tokens = 14};
const std::vector<int32_t> kPages{7, 2, 5, 0};  // of the prompt, from its page 0

using Place = std::pair<int, int>;  // lane, page
std::vector<Place> ready_blocks(OutgoingTransfer& out, int64_t num_tokens_ready) {
  std::vector<Place> blocks;
  while (const auto piece = out.next(num_tokens_ready)) blocks.emplace_back(piece->block.lane, piece->block.page);
  EXPECT_FALSE(out.has_next(num_tokens_ready));
  return blocks;
}

TEST(Transfer, PagesTravelWhenTheirTokensAreFinalLaneByLane) {
  Memory memory(kPlan, 8);
  OutgoingTransfer out(kPlan, memory.pool, kPages);
  EXPECT_EQ(kPlan.num_pages(), 3);
  EXPECT_EQ(kPlan.bytes_of(0), 40);
  EXPECT_EQ(kPlan.bytes_of(2), 20);  // tokens 12 and 13
  EXPECT_EQ(kPlan.num_bytes(), 2 * (40 + 40 + 20));
  EXPECT_TRUE(ready_blocks(out, 0).empty());
  EXPECT_TRUE(ready_blocks(out, 7).empty());  // page 0 of the prompt is not wanted, page 1 not full
  EXPECT_EQ(ready_blocks(out, 8), (std::vector<Place>{{0, 0}, {1, 0}}));
  EXPECT_TRUE(ready_blocks(out, 11).empty());
  EXPECT_TRUE(ready_blocks(out, 13) == (std::vector<Place>{{0, 1}, {1, 1}}));
  EXPECT_FALSE(out.all_sent());
  EXPECT_EQ(ready_blocks(out, 14), (std::vector<Place>{{0, 2}, {1, 2}}));
  EXPECT_TRUE(out.all_sent());
  EXPECT_EQ(out.done().num_blocks, 6u);
  EXPECT_EQ(out.done().num_bytes, 200u);

  OutgoingTransfer at_once(kPlan, memory.pool, kPages);
  EXPECT_EQ(ready_blocks(at_once, 14), (std::vector<Place>{{0, 0}, {0, 1}, {0, 2}, {1, 0}, {1, 1}, {1, 2}}));
}

// Pages whose tokens do not lie one after the other: the last one is sent whole.
TEST(Transfer, PagesThatAreNotRowsOfTokensTravelWhole) {
  TransferPlan plan = kPlan;
  plan.token_rows = false;
  EXPECT_EQ(plan.bytes_of(2), 40);
  EXPECT_EQ(plan.num_bytes(), 2 * 3 * 40);
  Memory from(plan, 8), to(plan, 8);
  for (size_t i = 0; i < from.bytes.size(); ++i) from.bytes[i] = std::byte(1 + i % 250);
  OutgoingTransfer out(plan, from.pool, kPages);
  IncomingTransfer in(plan, to.pool, {6, 1, 3});
  while (const auto piece = out.next(14)) in.receive(piece->block, piece->payload, true);
  in.finish(out.done());
  EXPECT_EQ(in.num_bytes(), plan.num_bytes());
  for (int layer = 0; layer < 2; ++layer)
    EXPECT_EQ(std::memcmp(to.pool.page(layer, 3), from.pool.page(layer, kPages[3]), 40), 0);
}

// More pages become ready while some travel: the window under way is finished first.
TEST(Transfer, ProgressInMidWindowLosesNothing) {
  Memory memory(kPlan, 8);
  OutgoingTransfer out(kPlan, memory.pool, kPages);
  std::vector<Place> order;
  for (int64_t ready : {8, 14, 14, 14, 14, 14}) {
    const auto piece = out.next(ready);
    ASSERT_TRUE(piece);
    order.emplace_back(piece->block.lane, piece->block.page);
  }
  EXPECT_FALSE(out.next(14));
  EXPECT_TRUE(out.all_sent());
  EXPECT_EQ(order, (std::vector<Place>{{0, 0}, {1, 0}, {0, 1}, {0, 2}, {1, 1}, {1, 2}}));
}

TEST(Transfer, BytesArriveInTheReceiversPages) {
  Memory from(kPlan, 8), to(kPlan, 8);
  for (size_t i = 0; i < from.bytes.size(); ++i) from.bytes[i] = std::byte(1 + i % 250);
  OutgoingTransfer out(kPlan, from.pool, kPages);
  IncomingTransfer in(kPlan, to.pool, {6, 1, 3});
  while (const auto piece = out.next(14)) in.receive(piece->block, piece->payload, true);
  in.finish(out.done());
  EXPECT_EQ(in.num_bytes(), 200);
  Memory expected(kPlan, 8);
  for (int l = 0; l < 2; ++l) {
    std::memcpy(expected.pool.page(l, 6), from.pool.page(l, 2), 40);
    std::memcpy(expected.pool.page(l, 1), from.pool.page(l, 5), 40);
    std::memcpy(expected.pool.page(l, 3), from.pool.page(l, 0), 20);
  }
  EXPECT_EQ(to.bytes, expected.bytes);

  // A cancelled transfer counts what arrives and writes nothing.
  Memory untouched(kPlan, 8);
  OutgoingTransfer again(kPlan, from.pool, kPages);
  IncomingTransfer cancelled(kPlan, untouched.pool, {6, 1, 3});
  while (const auto piece = again.next(14)) cancelled.receive(piece->block, piece->payload, false);
  cancelled.finish(again.done());
  EXPECT_EQ(untouched.bytes, Memory(kPlan, 8).bytes);
}

TEST(Transfer, PlansAndPagesAreChecked) {
  const auto plan = [](auto change) {
    TransferPlan p = kPlan;
    change(p);
    return p;
  };
  EXPECT_NO_THROW(check_plan(kPlan, 14));
  for (const TransferPlan& bad :
       {plan([](TransferPlan& p) { p.num_tokens = 0; }), plan([](TransferPlan& p) { p.num_tokens = 15; }),
        plan([](TransferPlan& p) { p.num_tokens = 4; }), plan([](TransferPlan& p) { p.first_page = -1; }),
        plan([](TransferPlan& p) { p.first_page = 4; }),
        plan([](TransferPlan& p) { p.first_page = std::numeric_limits<int64_t>::max(); }),
        plan([](TransferPlan& p) { p.num_lanes = 0; }), plan([](TransferPlan& p) { p.page_size = 0; }),
        plan([](TransferPlan& p) { p.page_bytes = 41; }), plan([](TransferPlan& p) { p.page_bytes = 4ll << 32; })})
    EXPECT_THROW(check_plan(bad, 14), Error);
  Memory memory(kPlan, 8);
  EXPECT_THROW(IncomingTransfer(kPlan, memory.pool, {6, 1}), Error);
  EXPECT_THROW(IncomingTransfer(kPlan, memory.pool, {6, 1, 8}), Error);
  EXPECT_THROW(IncomingTransfer(kPlan, memory.pool, {6, 1, -1}), Error);
  EXPECT_THROW(OutgoingTransfer(kPlan, memory.pool, {6, 1, 3}), Error);  // pages of the prompt, from 0
  KvPool other = memory.pool;
  other.page_bytes = 44;
  EXPECT_THROW(IncomingTransfer(kPlan, other, {6, 1, 3}), Error);
}

}  // namespace
}  // namespace moectl::transfer
