// Looking for markers in text that arrives in pieces: shared by the parsers of answers. Pure, any thread.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

namespace moectl::api {

inline constexpr std::string_view kBlanks = " \t\r\n";

inline size_t count_leading_blanks(std::string_view text) {
  return std::min(text.find_first_not_of(kBlanks), text.size());
}
// Blanks before a marker belong to it, so they are held back; no more of them than this, whatever a model repeats.
inline constexpr size_t kMaxHeldBlanks = 256;
inline size_t without_trailing_blanks(std::string_view text) {
  const size_t end = text.find_last_not_of(kBlanks) + 1;
  return std::max(end, text.size() - std::min(text.size(), kMaxHeldBlanks));
}
inline std::string_view trim_blanks(std::string_view text) {
  text = text.substr(0, text.find_last_not_of(kBlanks) + 1);
  return text.substr(count_leading_blanks(text));
}

// Bytes at the end of `text` that may still become the marker.
inline size_t partial_marker(std::string_view text, std::string_view marker) {
  if (marker.empty()) return 0;
  for (size_t n = std::min(text.size(), marker.size() - 1); n > 0; --n)
    if (text.substr(text.size() - n) == marker.substr(0, n)) return n;
  return 0;
}
inline size_t partial_marker(std::string_view text, std::span<const std::string_view> markers) {
  size_t most = 0;
  for (const std::string_view marker : markers) most = std::max(most, partial_marker(text, marker));
  return most;
}

// The first of `markers` in a text; of two at one place the longer.
struct FoundMarker {
  size_t at = std::string_view::npos;
  std::string_view marker;  // empty: none
  explicit operator bool() const { return !marker.empty(); }
};
inline FoundMarker find_marker(std::string_view text, std::span<const std::string_view> markers) {
  FoundMarker found;
  for (const std::string_view marker : markers) {
    if (marker.empty()) continue;
    const size_t at =
        text.substr(0, std::min(text.size(), found ? found.at + marker.size() : text.size())).find(marker);
    if (at < found.at || (at == found.at && at != std::string_view::npos && marker.size() > found.marker.size()))
      found = {at, marker};
  }
  return found;
}

}  // namespace moectl::api
