#include "core/http/chunked_decoder.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

namespace moectl::http {

void ChunkedDecoder::refuse(int status, std::string message) {
  refusal_ = Refusal{status, std::move(message)};
}

bool ChunkedDecoder::take_line(std::string_view& input) {
  size_t lf = input.find('\n');
  size_t n = lf == std::string_view::npos ? input.size() : lf + 1;
  if (line_.size() + n > kMaxLineBytes) {
    bool trailer = state_ == State::kTrailer;
    refuse(trailer ? 431 : 400, fmt::format("a {} line of the chunked body is longer than {} bytes",
                                            trailer ? "trailer" : "chunk-size", kMaxLineBytes));
    return false;
  }
  line_.append(input.substr(0, n));
  input.remove_prefix(n);
  if (lf == std::string_view::npos) return false;
  if (line_.size() < 2 || line_[line_.size() - 2] != '\r') {
    refuse(400, "a line of the chunked body ends in LF without CR");
    return false;
  }
  line_.resize(line_.size() - 2);
  return true;
}

void ChunkedDecoder::on_size_line(size_t body_bytes) {
  const char *begin = line_.data(), *end = begin + line_.size();
  auto [rest, ec] = std::from_chars(begin, end, chunk_left_, 16);
  if (rest == begin || rest - begin > 16 || ec == std::errc::invalid_argument)
    return refuse(400, "a chunk size is not a hexadecimal number");
  if (rest != end && *rest != ';') return refuse(400, "a chunk size is followed by something that is not an extension");
  if (std::any_of(rest, end, [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f; }))
    return refuse(400, "a chunk extension contains a control character");
  extension_bytes_ += size_t(end - rest);
  if (extension_bytes_ > kMaxExtensionBytes)
    return refuse(400, fmt::format("the chunk extensions are longer than {} bytes together", kMaxExtensionBytes));
  if (ec == std::errc::result_out_of_range || chunk_left_ > max_body_bytes_ - body_bytes)
    return refuse(413, fmt::format("the request body is larger than {} bytes", max_body_bytes_));
  state_ = chunk_left_ ? State::kData : State::kTrailer;
}

void ChunkedDecoder::on_trailer_line() {
  if (line_.empty()) {
    state_ = State::kDone;
    return;
  }
  trailer_bytes_ += line_.size() + 2;
  if (trailer_bytes_ > kMaxTrailerBytes)
    return refuse(431, fmt::format("the trailers are longer than {} bytes", kMaxTrailerBytes));
  std::string name, value;
  refusal_ = parse_field(line_, name, value);
}

size_t ChunkedDecoder::feed(std::string_view input, std::string& body) {
  const size_t total = input.size();
  while (!input.empty() && !refusal_ && state_ != State::kDone) {
    if (state_ == State::kData) {
      size_t n = size_t(std::min<uint64_t>(chunk_left_, input.size()));
      body.append(input.substr(0, n));
      input.remove_prefix(n);
      chunk_left_ -= n;
      if (chunk_left_ == 0) state_ = State::kDataEnd;
      continue;
    }
    if (state_ == State::kDataEnd) {  // exactly CRLF; said at the first wrong byte
      line_ += input.front();
      input.remove_prefix(1);
      if (line_ != "\r" && line_ != "\r\n") refuse(400, "the data of a chunk is longer than its size says");
      if (line_.size() == 2) {
        line_.clear();
        state_ = State::kSize;
      }
      continue;
    }
    if (!take_line(input)) continue;
    if (state_ == State::kSize) {
      on_size_line(body.size());
    } else {
      on_trailer_line();
    }
    line_.clear();
  }
  return total - input.size();
}

}  // namespace moectl::http
