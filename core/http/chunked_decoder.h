// Decoder of chunked request bodies (RFC 9112, section 7.1), fed with whatever arrived. Pure; knows no socket. Chunk
// extensions and trailers are validated and dropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/http/request_validator.h"

namespace moectl::http {

class ChunkedDecoder {
 public:
  explicit ChunkedDecoder(size_t max_body_bytes) : max_body_bytes_(max_body_bytes) {}
  // Appends decoded data to `body` and returns how much of `input` was consumed: all of it, unless the body ended or
  // was refused within it.
  size_t feed(std::string_view input, std::string& body);
  bool done() const { return state_ == State::kDone; }
  const std::optional<Refusal>& refusal() const { return refusal_; }

  static constexpr size_t kMaxLineBytes = 4096;           // a chunk-size line with its extension; a trailer line
  static constexpr size_t kMaxExtensionBytes = 16 << 10;  // over the whole body
  static constexpr size_t kMaxTrailerBytes = 8 << 10;     // all trailer lines

 private:
  enum class State { kSize, kData, kDataEnd, kTrailer, kDone };
  bool take_line(std::string_view& input);  // true when line_ holds a whole line, without CRLF
  void on_size_line(size_t body_bytes);
  void on_trailer_line();
  void refuse(int status, std::string message);

  size_t max_body_bytes_;
  State state_ = State::kSize;
  std::string line_;
  uint64_t chunk_left_ = 0;
  size_t extension_bytes_ = 0, trailer_bytes_ = 0;
  std::optional<Refusal> refusal_;
};

}  // namespace moectl::http
