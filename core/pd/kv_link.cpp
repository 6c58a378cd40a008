#include "core/pd/kv_link.h"

#include <algorithm>
#include <cstring>

#include "core/base/error.h"
#include "core/base/hmac.h"

namespace moectl {

using namespace transfer;

namespace {

constexpr size_t kReadBufferBytes = 512 << 10;  // many frames a system call; fits a core's cache
constexpr std::string_view kProofLabel = "moectl kv proof 1";

[[noreturn]] void refuse(const TcpChannel& channel, std::string_view why) {
  throw Error(Code::kUnavailable, fmt::format("{}: {}", channel.peer(), why));
}

// What `prover` shows to the other side. The label and the role keep one side's proof from serving as the other's.
Sha256 proof_of(Role prover, ByteSpan decode_hello, ByteSpan prefill_hello, std::string_view secret) {
  std::string message(kProofLabel);
  const auto add = [&message](ByteSpan part) {
    const uint64_t size = part.size();
    message.append(reinterpret_cast<const char*>(&size), sizeof size);
    message.append(reinterpret_cast<const char*>(part.data()), part.size());
  };
  message += char(prover);
  add(decode_hello);
  add(prefill_hello);
  return hmac_sha256(secret, message);
}

std::string_view text_of(const Sha256& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

FrameReader::Frame expect(FrameReader& reader, const TcpChannel& channel, FrameType type, const KvTimeouts& timeouts,
                          TcpChannel::Clock::time_point deadline) {
  const FrameReader::Frame frame = reader.next(timeouts.handshake, deadline);
  if (frame.type != type)
    refuse(channel,
           fmt::format("the handshake brought {} where {} was expected", frame_name(frame.type), frame_name(type)));
  return frame;
}

}  // namespace

// ------------------------------------------------------------------------------------------------ frames
void FrameReader::set_limits(const FrameLimits& limits) {
  limits_ = limits;
  const size_t wanted = limits.from == FrameLimits::From::kStranger
                            ? limits.max_frame_bytes()
                            : std::max(kReadBufferBytes, limits.max_frame_bytes() * 2);
  if (wanted > buffer_.size()) buffer_.resize(wanted);
}

// Until `num_bytes` lie at begin_.
void FrameReader::fill(size_t num_bytes, TcpChannel::Millis silence, TcpChannel::Clock::time_point deadline) {
  if (begin_ + num_bytes > buffer_.size()) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  while (end_ - begin_ < num_bytes) end_ += channel_.recv_some(std::span(buffer_).subspan(end_), silence, deadline);
}

FrameReader::Frame FrameReader::next(TcpChannel::Millis silence, TcpChannel::Clock::time_point deadline) {
  if (begin_ == end_) begin_ = end_ = 0;
  fill(kFrameHeaderBytes, silence, deadline);
  const auto header_at = [this] {
    return std::span<const std::byte, kFrameHeaderBytes>(&buffer_[begin_], kFrameHeaderBytes);
  };
  const FrameHeader header = read_frame_header(header_at(), limits_);
  fill(header.total_bytes(), silence, deadline);  // bounded by the limits: it fits the buffer
  const ByteSpan rest(&buffer_[begin_] + kFrameHeaderBytes, header.total_bytes() - kFrameHeaderBytes);
  const ByteSpan fields = rest.first(header.field_bytes);
  verify_frame(header_at(), fields);
  begin_ += header.total_bytes();
  return {header.type, fields, rest.subspan(header.field_bytes)};
}

void send(TcpChannel& channel, ByteSpan frame, TcpChannel::Millis stall) {
  iovec part{const_cast<std::byte*>(frame.data()), frame.size()};
  channel.send_all({&part, 1}, stall);
}

// ------------------------------------------------------------------------------------------------ handshake
std::string layout_difference(const KvLayout& ours, const KvLayout& theirs) {
  std::string text;
  const auto compare = [&text](std::string_view name, const auto& a, const auto& b) {
    if (a != b) text += fmt::format("{}{}: ours is {}, the peer's is {}", text.empty() ? "" : "; ", name, a, b);
  };
  compare("model hash", ours.model_hash, theirs.model_hash);
  compare("KV format", ours.kv_format, theirs.kv_format);
  compare("lanes", ours.num_lanes, theirs.num_lanes);
  compare("tokens a page", ours.page_size, theirs.page_size);
  compare("bytes a page", ours.page_bytes, theirs.page_bytes);
  return text;
}

Hello shake_hands(TcpChannel& channel, FrameReader& reader, Hello ours, std::string_view secret,
                  const KvTimeouts& timeouts) {
  const auto deadline = TcpChannel::Clock::now() + timeouts.handshake;
  reader.set_limits({});
  random_bytes(ours.nonce.data(), ours.nonce.size());
  const Bytes our_hello = encode(ours);
  const ByteSpan our_fields = ByteSpan(our_hello).subspan(kFrameHeaderBytes);
  send(channel, our_hello, timeouts.handshake);

  const FrameReader::Frame hello_frame = expect(reader, channel, FrameType::kHello, timeouts, deadline);
  const Bytes their_fields(hello_frame.fields.begin(), hello_frame.fields.end());
  Hello theirs = decode_hello_start(their_fields);
  if (theirs.version != ours.version)
    refuse(channel,
           fmt::format("the peer speaks version {} of the KV protocol, this side {}: run the same release on both",
                       theirs.version, ours.version));
  if (theirs.role == ours.role || (theirs.role != Role::kDecode && theirs.role != Role::kPrefill))
    refuse(channel, fmt::format("the peer has role {} ({}); this side is {}", uint16_t(theirs.role),
                                name_of(theirs.role), name_of(ours.role)));

  const bool decode = ours.role == Role::kDecode;
  const ByteSpan decode_hello = decode ? our_fields : ByteSpan(their_fields);
  const ByteSpan prefill_hello = decode ? ByteSpan(their_fields) : our_fields;
  const Bytes our_proof = encode(Proof{proof_of(ours.role, decode_hello, prefill_hello, secret)});
  const auto check_their_proof = [&] {
    Proof proof;
    try {
      proof = decode_proof(expect(reader, channel, FrameType::kProof, timeouts, deadline).fields);
    } catch (const Error& e) {  // a peer that refuses our proof only closes
      refuse(channel,
             fmt::format("no proof from the peer; is the cluster secret the same on both sides? ({})", e.what()));
    }
    const Sha256 right = proof_of(theirs.role, decode_hello, prefill_hello, secret);
    if (!constant_time_equal(text_of(proof.mac), text_of(right)))
      refuse(channel, "the peer does not know the cluster secret (--cluster-secret-file)");
  };
  // The decode worker, which connects, proves first: the prefill worker sends an unauthenticated peer nothing that
  // depends on the secret.
  if (decode) send(channel, our_proof, timeouts.handshake);
  check_their_proof();
  if (!decode) send(channel, our_proof, timeouts.handshake);

  decode_hello_layout(their_fields, theirs);
  if (const std::string difference = layout_difference(ours.layout, theirs.layout); !difference.empty())
    refuse(channel, "the workers do not fit together: " + difference);
  return theirs;
}

}  // namespace moectl
