// The messages of the KV transfer as bytes: framed, little-endian, versioned. Pure: no sockets, no threads. Every
// length is bounded before anything is allocated, every reader stops at the end of its field, unknown trailing fields
// are skipped. docs/pd.md tells who sends what when.
//
// A frame is a 16-byte header {u32 field_bytes, u32 payload_bytes, u16 type, u16 zero, u32 check}, then the fields,
// then the payload (blocks only). `check` is the low half of XXH3-64 over the first 12 header bytes and the fields; the
// payload has its own checksum.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/role.h"
#include "core/kv/kv_pool.h"

namespace moectl::transfer {

inline constexpr uint32_t kMagic = 0x564b454d;  // "MEKV"
inline constexpr uint16_t kVersion = 2;
inline constexpr size_t kFrameHeaderBytes = 16;
inline constexpr size_t kBlockFieldBytes = 48;
inline constexpr size_t kNonceBytes = 32, kProofBytes = 32;
inline constexpr size_t kMaxNameBytes = 256;  // model hash, KV format, request id
inline constexpr size_t kMaxSaltBytes = 4096;
inline constexpr size_t kMaxReasonBytes = 512;  // longer ones are cut

using Bytes = std::vector<std::byte>;
using ByteSpan = std::span<const std::byte>;
using TransferId = std::array<uint8_t, 16>;  // random: whoever does not know it cannot address the transfer

enum class FrameType : uint16_t {
  kHello = 1,      // both, first
  kProof = 2,      // both, second
  kPrefill = 3,    // decode -> prefill
  kCancel = 4,     // decode -> prefill
  kHeartbeat = 5,  // both
  kBlock = 6,      // prefill -> decode, the only one with a payload
  kDone = 7,       // prefill -> decode, last word on a transfer
  kFailed = 8,     // prefill -> decode, last word on a transfer
};
std::string_view frame_name(FrameType type);

using moectl::Role;

// ------------------------------------------------------------------------------------------------ frames
struct FrameHeader {
  FrameType type = FrameType::kHeartbeat;
  uint32_t field_bytes = 0, payload_bytes = 0, check = 0;
  size_t total_bytes() const { return kFrameHeaderBytes + field_bytes + size_t(payload_bytes); }
};

// Which frames a side takes at a moment, and how large they may be.
struct FrameLimits {
  enum class From { kStranger, kDecode, kPrefill } from = From::kStranger;  // kStranger: before the proofs
  int64_t max_prompt_tokens = 0;                                            // of Prefill
  int64_t max_payload_bytes = 0;                                            // of Block
  size_t max_frame_bytes() const;
};

// Throws Error{kBadData}: a type that `limits` does not allow, or a length over its bound.
FrameHeader read_frame_header(std::span<const std::byte, kFrameHeaderBytes> bytes, const FrameLimits& limits);
// Throws Error{kBadData} unless the check of a frame (header and fields) is right.
void verify_frame(std::span<const std::byte, kFrameHeaderBytes> header, ByteSpan fields);

// ------------------------------------------------------------------------------------------------ messages
// decode_*: `fields` of a verified frame; throw Error{kBadData} naming message and field. encode: a complete frame.
struct Hello {
  uint16_t version = kVersion;
  Role role = Role::kDecode;
  std::array<uint8_t, kNonceBytes> nonce{};
  KvLayout layout;
  int64_t max_prompt_tokens = 0;  // the longest prompt this side takes
};
Bytes encode(const Hello& hello);
Hello decode_hello_start(ByteSpan fields);  // magic, version, role, nonce: what the proof needs
void decode_hello_layout(ByteSpan fields,
                         Hello& hello);  // the rest; only once the peer has proved that it knows the secret

struct Proof {
  std::array<uint8_t, kProofBytes> mac{};
};
Bytes encode(const Proof& proof);
Proof decode_proof(ByteSpan fields);

struct Prefill {
  TransferId id{};
  uint64_t epoch = 0;                      // of the transfer: D's count of attempts
  int64_t first_page = 0, num_tokens = 0;  // KV of tokens [first_page * page_size, num_tokens) is wanted
  std::string request_id, cache_salt;
  std::vector<int32_t> prompt_ids;
};
Bytes encode(const Prefill& request);  // throws Error{kInvalidArgument}: a field longer than the protocol allows
Prefill decode_prefill(ByteSpan fields, int64_t max_prompt_tokens);

struct Cancel {
  TransferId id{};
  uint64_t epoch = 0;
};
Bytes encode(const Cancel& cancel);
Cancel decode_cancel(ByteSpan fields);

Bytes encode_heartbeat();

// The KV of one page of a lane (KvPool). Its payload follows the frame.
struct Block {
  TransferId id{};
  uint64_t epoch = 0;
  uint32_t lane = 0, page = 0;  // page: within the request, 0 is its first wanted page
  uint32_t num_bytes = 0;
  uint64_t checksum = 0;  // XXH3-64 of the payload
};
using BlockFrame = std::array<std::byte, kFrameHeaderBytes + kBlockFieldBytes>;
BlockFrame encode(const Block& block);
Block decode_block(ByteSpan fields);

struct Done {
  TransferId id{};
  uint64_t epoch = 0;
  uint64_t num_blocks = 0, num_bytes = 0, digest = 0;  // digest: BlockDigest over all blocks in order
  int64_t num_cached_tokens = 0;
  double queue_seconds = 0, compute_seconds = 0, transfer_seconds = 0;
};
Bytes encode(const Done& done);
Done decode_done(ByteSpan fields);

struct Failed {
  TransferId id{};
  uint64_t epoch = 0;
  std::string reason;
};
Bytes encode(const Failed& failed);
Failed decode_failed(ByteSpan fields);

uint64_t checksum(ByteSpan payload);

// Over the blocks of a transfer in the order they travel.
class BlockDigest {
 public:
  void add(const Block& block);
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0;
};

}  // namespace moectl::transfer
