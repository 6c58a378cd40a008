// What both ends of a KV connection share: timeouts, reading frames out of a bounded buffer, and the handshake. One
// reader thread a connection. It knows the protocol's beginning (docs/pd.md), nothing of transfers.
#pragma once

#include <chrono>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/pd/channel.h"
#include "core/pd/transfer_codec.h"

namespace moectl {

struct KvTimeouts {
  using Millis = std::chrono::milliseconds;
  Millis connect{2000};
  Millis handshake{5000};    // all of it
  Millis heartbeat{2000};    // a side that has nothing to say says this
  Millis dead_after{10000};  // a peer that says nothing, or takes nothing, for so long is dead
};

class FrameReader {
 public:
  struct Frame {
    transfer::FrameType type = transfer::FrameType::kHeartbeat;
    transfer::ByteSpan fields, payload;  // valid until the next call
  };

  explicit FrameReader(TcpChannel& channel) : channel_(channel) {}
  // From now on these frames are accepted. Allocates for the largest of them.
  void set_limits(const transfer::FrameLimits& limits);
  // The next frame, its check verified (a payload's checksum is the caller's). Throws Error{kBadData} (not acceptable)
  // or Error{kUnavailable} (closed, silent, late).
  Frame next(TcpChannel::Millis silence, TcpChannel::Clock::time_point deadline = TcpChannel::Clock::time_point::max());

 private:
  void fill(size_t num_bytes, TcpChannel::Millis silence, TcpChannel::Clock::time_point deadline);

  TcpChannel& channel_;
  transfer::FrameLimits limits_;
  std::vector<std::byte> buffer_;
  size_t begin_ = 0, end_ = 0;  // what was received and not yet handed out
};

void send(TcpChannel& channel, transfer::ByteSpan frame, TcpChannel::Millis stall);

// Both sides: hellos, then proofs over both hellos, then the comparison of layouts. The peer's layout is not even
// parsed before its proof was right. Returns the peer's hello. Throws Error{kUnavailable} naming what differs, and
// leaves the connection to be closed. `ours.nonce` is drawn here.
transfer::Hello shake_hands(TcpChannel& channel, FrameReader& reader, transfer::Hello ours, std::string_view secret,
                            const KvTimeouts& timeouts);

// "" or what differs: "model hash: ours is .., the peer's is ..".
std::string layout_difference(const KvLayout& ours, const KvLayout& theirs);

}  // namespace moectl
