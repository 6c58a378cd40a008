#include "core/pd/transfer_codec.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "core/base/error.h"

namespace moectl::transfer {
namespace {

static_assert(std::endian::native == std::endian::little, "the protocol is little-endian");

constexpr size_t kCheckedHeaderBytes = 12;
constexpr size_t kMaxSmallFields = 256, kMaxHelloFields = 1024, kMaxFailedFields = 1024;
constexpr int64_t kMaxPromptTokens = 16 << 20;  // keeps every frame below 4 GiB whatever a side claims to take

[[noreturn]] void bad(std::string message) {
  throw Error(Code::kBadData, std::move(message));
}

class Writer {
 public:
  explicit Writer(FrameType type) : type_(type), bytes_(kFrameHeaderBytes) {}

  template <class T>
  Writer& number(T value) {
    return raw(&value, sizeof value);
  }
  Writer& text(std::string_view value, size_t max_bytes, std::string_view field) {
    if (value.size() > max_bytes)
      throw Error(Code::kInvalidArgument, fmt::format("KV transfer: {} has {} bytes; the protocol carries at most {}",
                                                      field, value.size(), max_bytes));
    number(uint16_t(value.size()));
    return raw(value.data(), value.size());
  }
  Writer& raw(const void* data, size_t size) {
    const auto* p = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), p, p + size);
    return *this;
  }
  Bytes finish(uint32_t payload_bytes = 0);

 private:
  FrameType type_;
  Bytes bytes_;
};

void write_header(std::byte* frame, FrameType type, uint32_t field_bytes, uint32_t payload_bytes) {
  const uint16_t type_and_zero[2] = {uint16_t(type), 0};
  std::memcpy(frame, &field_bytes, 4);
  std::memcpy(frame + 4, &payload_bytes, 4);
  std::memcpy(frame + 8, type_and_zero, 4);
}

uint32_t frame_check(const std::byte* header, ByteSpan fields) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, header, kCheckedHeaderBytes);
  if (!fields.empty()) XXH3_64bits_update(&state, fields.data(), fields.size());
  return uint32_t(XXH3_64bits_digest(&state));
}

Bytes Writer::finish(uint32_t payload_bytes) {
  write_header(bytes_.data(), type_, uint32_t(bytes_.size() - kFrameHeaderBytes), payload_bytes);
  const uint32_t check = frame_check(bytes_.data(), ByteSpan(bytes_).subspan(kFrameHeaderBytes));
  std::memcpy(bytes_.data() + kCheckedHeaderBytes, &check, sizeof check);
  return std::move(bytes_);
}

class Reader {
 public:
  Reader(FrameType type, ByteSpan fields) : type_(type), rest_(fields) {}

  void raw(void* out, size_t size, std::string_view field) {
    if (rest_.size() < size)
      bad(fmt::format("KV message {}: field {} needs {} bytes, {} are left", frame_name(type_), field, size,
                      rest_.size()));
    if (size) std::memcpy(out, rest_.data(), size);
    rest_ = rest_.subspan(size);
  }
  template <class T>
  T number(std::string_view field) {
    T value;
    raw(&value, sizeof value, field);
    return value;
  }
  // An integer of [0, max].
  int64_t count(std::string_view field, int64_t max) {
    const auto value = number<uint64_t>(field);
    if (value > uint64_t(max))
      bad(fmt::format("KV message {}: field {} is {}; at most {} is allowed", frame_name(type_), field, value, max));
    return int64_t(value);
  }
  std::string text(std::string_view field, size_t max_bytes) {
    const size_t size = number<uint16_t>(field);
    if (size > max_bytes || size > rest_.size())
      bad(fmt::format("KV message {}: field {} states {} bytes; at most {} are allowed and {} are left",
                      frame_name(type_), field, size, max_bytes, rest_.size()));
    std::string value(size, '\0');
    raw(value.data(), size, field);
    return value;
  }
  // A duration that somebody may print: finite and not negative.
  double seconds(std::string_view field) {
    const auto value = number<double>(field);
    if (!std::isfinite(value) || value < 0)
      bad(fmt::format("KV message {}: field {} is no duration", frame_name(type_), field));
    return value;
  }
  size_t left() const { return rest_.size(); }

 private:
  FrameType type_;
  ByteSpan rest_;
};

// 0: not accepted.
size_t max_field_bytes(FrameType type, const FrameLimits& limits) {
  using From = FrameLimits::From;
  switch (type) {
    case FrameType::kHello:
      return limits.from == From::kStranger ? kMaxHelloFields : 0;
    case FrameType::kProof:
      return limits.from == From::kStranger ? kMaxSmallFields : 0;
    case FrameType::kPrefill:
      if (limits.from != From::kDecode) return 0;
      return kMaxSmallFields + kMaxNameBytes + kMaxSaltBytes +
             4 * size_t(std::min(limits.max_prompt_tokens, kMaxPromptTokens));
    case FrameType::kCancel:
      return limits.from == From::kDecode ? kMaxSmallFields : 0;
    case FrameType::kHeartbeat:
      return limits.from != From::kStranger ? kMaxSmallFields : 0;
    case FrameType::kBlock:
    case FrameType::kDone:
      return limits.from == From::kPrefill ? kMaxSmallFields : 0;
    case FrameType::kFailed:
      return limits.from == From::kPrefill ? kMaxFailedFields : 0;
  }
  return 0;
}

}  // namespace

std::string_view frame_name(FrameType type) {
  static constexpr std::string_view kNames[] = {"?",         "Hello", "Proof", "Prefill", "Cancel",
                                                "Heartbeat", "Block", "Done",  "Failed"};
  return size_t(type) < std::size(kNames) ? kNames[size_t(type)] : kNames[0];
}

size_t FrameLimits::max_frame_bytes() const {
  size_t fields = 0;
  for (uint16_t t = 1; t <= uint16_t(FrameType::kFailed); ++t)
    fields = std::max(fields, max_field_bytes(FrameType(t), *this));
  return kFrameHeaderBytes + fields + (from == From::kPrefill ? size_t(max_payload_bytes) : 0);
}

FrameHeader read_frame_header(std::span<const std::byte, kFrameHeaderBytes> bytes, const FrameLimits& limits) {
  FrameHeader h;
  uint16_t type, zero;
  std::memcpy(&h.field_bytes, bytes.data(), 4);
  std::memcpy(&h.payload_bytes, bytes.data() + 4, 4);
  std::memcpy(&type, bytes.data() + 8, 2);
  std::memcpy(&zero, bytes.data() + 10, 2);
  std::memcpy(&h.check, bytes.data() + kCheckedHeaderBytes, 4);
  h.type = FrameType(type);
  const size_t max_fields = max_field_bytes(h.type, limits);
  if (max_fields == 0 || zero != 0)
    bad(fmt::format("KV message of type {} ({}) is not accepted here", type, frame_name(h.type)));
  if (h.field_bytes > max_fields)
    bad(fmt::format("KV message {} states {} bytes of fields; at most {} are accepted", frame_name(h.type),
                    h.field_bytes, max_fields));
  const int64_t max_payload = h.type == FrameType::kBlock ? limits.max_payload_bytes : 0;
  if (h.payload_bytes > max_payload)
    bad(fmt::format("KV message {} states {} bytes of payload; at most {} are accepted", frame_name(h.type),
                    h.payload_bytes, max_payload));
  return h;
}

void verify_frame(std::span<const std::byte, kFrameHeaderBytes> header, ByteSpan fields) {
  uint32_t stated;
  std::memcpy(&stated, header.data() + kCheckedHeaderBytes, 4);
  if (frame_check(header.data(), fields) != stated) bad("KV message arrived damaged: the frame's check does not match");
}

// ------------------------------------------------------------------------------------------------ messages
Bytes encode(const Hello& m) {
  return Writer(FrameType::kHello)
      .number(kMagic)
      .number(m.version)
      .number(uint16_t(m.role))
      .raw(m.nonce.data(), m.nonce.size())
      .text(m.layout.model_hash, kMaxNameBytes, "model hash")
      .text(m.layout.kv_format, kMaxNameBytes, "KV format")
      .number(uint64_t(m.layout.num_lanes))
      .number(uint64_t(m.layout.page_size))
      .number(uint64_t(m.layout.page_bytes))
      .number(uint64_t(m.max_prompt_tokens))
      .finish();
}

namespace {
Reader read_hello_start(ByteSpan fields, Hello& m) {
  Reader r(FrameType::kHello, fields);
  if (r.number<uint32_t>("magic") != kMagic) bad("the peer does not speak the KV protocol (wrong magic number)");
  m.version = r.number<uint16_t>("version");
  m.role = Role(r.number<uint16_t>("role"));
  r.raw(m.nonce.data(), m.nonce.size(), "nonce");
  return r;
}
}  // namespace

Hello decode_hello_start(ByteSpan fields) {
  Hello m;
  read_hello_start(fields, m);
  return m;
}

void decode_hello_layout(ByteSpan fields, Hello& m) {
  Reader r = read_hello_start(fields, m);
  m.layout.model_hash = r.text("model hash", kMaxNameBytes);
  m.layout.kv_format = r.text("KV format", kMaxNameBytes);
  m.layout.num_lanes = int(r.count("num_lanes", INT32_MAX));
  m.layout.page_size = int(r.count("page_size", INT32_MAX));
  m.layout.page_bytes = r.count("page_bytes", INT64_MAX);
  m.max_prompt_tokens = r.count("max_prompt_tokens", INT64_MAX);
}

Bytes encode(const Proof& m) {
  return Writer(FrameType::kProof).raw(m.mac.data(), m.mac.size()).finish();
}
Proof decode_proof(ByteSpan fields) {
  Proof m;
  Reader(FrameType::kProof, fields).raw(m.mac.data(), m.mac.size(), "mac");
  return m;
}

Bytes encode(const Prefill& m) {
  if (int64_t(m.prompt_ids.size()) > kMaxPromptTokens)
    throw Error(Code::kInvalidArgument, fmt::format("KV transfer: a prompt of {} tokens; the protocol carries {}",
                                                    m.prompt_ids.size(), kMaxPromptTokens));
  return Writer(FrameType::kPrefill)
      .raw(m.id.data(), m.id.size())
      .number(m.epoch)
      .number(uint64_t(m.first_page))
      .number(uint64_t(m.num_tokens))
      .text(m.request_id.substr(0, kMaxNameBytes), kMaxNameBytes, "request id")
      .text(m.cache_salt, kMaxSaltBytes, "cache salt")
      .number(uint64_t(m.prompt_ids.size()))
      .raw(m.prompt_ids.data(), m.prompt_ids.size() * sizeof(int32_t))
      .finish();
}
Prefill decode_prefill(ByteSpan fields, int64_t max_prompt_tokens) {
  Reader r(FrameType::kPrefill, fields);
  Prefill m;
  r.raw(m.id.data(), m.id.size(), "transfer id");
  m.epoch = r.number<uint64_t>("epoch");
  m.first_page = r.count("first_page", INT32_MAX);
  m.num_tokens = r.count("num_tokens", max_prompt_tokens);
  m.request_id = r.text("request id", kMaxNameBytes);
  m.cache_salt = r.text("cache salt", kMaxSaltBytes);
  const int64_t n = r.count("prompt length", max_prompt_tokens);
  if (r.left() / sizeof(int32_t) < size_t(n))
    bad(fmt::format("KV message Prefill: states {} prompt ids, {} bytes are left", n, r.left()));
  m.prompt_ids.resize(size_t(n));
  r.raw(m.prompt_ids.data(), size_t(n) * sizeof(int32_t), "prompt ids");
  return m;
}

Bytes encode(const Cancel& m) {
  return Writer(FrameType::kCancel).raw(m.id.data(), m.id.size()).number(m.epoch).finish();
}
Cancel decode_cancel(ByteSpan fields) {
  Reader r(FrameType::kCancel, fields);
  Cancel m;
  r.raw(m.id.data(), m.id.size(), "transfer id");
  m.epoch = r.number<uint64_t>("epoch");
  return m;
}

Bytes encode_heartbeat() {
  return Writer(FrameType::kHeartbeat).finish();
}

// No allocation: thousands of blocks a second pass here.
BlockFrame encode(const Block& m) {
  BlockFrame frame{};
  std::byte* p = frame.data() + kFrameHeaderBytes;
  std::memcpy(p, m.id.data(), 16);
  std::memcpy(p + 16, &m.epoch, 8);
  std::memcpy(p + 24, &m.lane, 4);
  std::memcpy(p + 28, &m.page, 4);
  std::memcpy(p + 32, &m.num_bytes, 4);  // 4 bytes of zero follow
  std::memcpy(p + 40, &m.checksum, 8);
  write_header(frame.data(), FrameType::kBlock, kBlockFieldBytes, m.num_bytes);
  const uint32_t check = frame_check(frame.data(), {p, kBlockFieldBytes});
  std::memcpy(frame.data() + kCheckedHeaderBytes, &check, sizeof check);
  return frame;
}
Block decode_block(ByteSpan fields) {
  Reader r(FrameType::kBlock, fields);
  Block m;
  r.raw(m.id.data(), m.id.size(), "transfer id");
  m.epoch = r.number<uint64_t>("epoch");
  m.lane = r.number<uint32_t>("lane");
  m.page = r.number<uint32_t>("page");
  m.num_bytes = r.number<uint32_t>("byte count");
  r.number<uint32_t>("zero");
  m.checksum = r.number<uint64_t>("checksum");
  return m;
}

Bytes encode(const Done& m) {
  return Writer(FrameType::kDone)
      .raw(m.id.data(), m.id.size())
      .number(m.epoch)
      .number(m.num_blocks)
      .number(m.num_bytes)
      .number(m.digest)
      .number(uint64_t(m.num_cached_tokens))
      .number(m.queue_seconds)
      .number(m.compute_seconds)
      .number(m.transfer_seconds)
      .finish();
}
Done decode_done(ByteSpan fields) {
  Reader r(FrameType::kDone, fields);
  Done m;
  r.raw(m.id.data(), m.id.size(), "transfer id");
  m.epoch = r.number<uint64_t>("epoch");
  m.num_blocks = r.number<uint64_t>("number of blocks");
  m.num_bytes = r.number<uint64_t>("number of bytes");
  m.digest = r.number<uint64_t>("digest");
  m.num_cached_tokens = r.count("num_cached_tokens", INT32_MAX);
  m.queue_seconds = r.seconds("queue seconds");
  m.compute_seconds = r.seconds("compute seconds");
  m.transfer_seconds = r.seconds("transfer seconds");
  return m;
}

Bytes encode(const Failed& m) {
  return Writer(FrameType::kFailed)
      .raw(m.id.data(), m.id.size())
      .number(m.epoch)
      .text(m.reason.substr(0, kMaxReasonBytes), kMaxReasonBytes, "reason")
      .finish();
}
Failed decode_failed(ByteSpan fields) {
  Reader r(FrameType::kFailed, fields);
  Failed m;
  r.raw(m.id.data(), m.id.size(), "transfer id");
  m.epoch = r.number<uint64_t>("epoch");
  m.reason = r.text("reason", kMaxReasonBytes);
  return m;
}

uint64_t checksum(ByteSpan payload) {
  return XXH3_64bits(payload.data(), payload.size());
}

void BlockDigest::add(const Block& block) {
  const uint64_t words[3] = {value_, block.checksum, uint64_t(block.lane) << 32 | block.page};
  value_ = XXH3_64bits(words, sizeof words);
}

}  // namespace moectl::transfer
