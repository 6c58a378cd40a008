#include "core/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "core/base/check.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

// Below the first combining mark (U+0300) nothing composes with anything.
bool is_nfc_already(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0xcc; });
}

utf8proc_propval_t combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// Canonical order. utf8proc's own (in utf8proc_map) is quadratic in the length of a run of marks.
void order_marks(std::vector<utf8proc_int32_t>& code_points) {
  for (size_t begin = 0; begin < code_points.size();) {
    if (combining_class(code_points[begin]) == 0) {
      ++begin;
      continue;
    }
    size_t end = begin;
    while (end < code_points.size() && combining_class(code_points[end]) != 0) ++end;
    std::stable_sort(code_points.begin() + begin, code_points.begin() + end,
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
}

}  // namespace

std::string nfc(std::string_view text) {
  if (is_nfc_already(text)) return std::string(text);
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    std::array<utf8proc_int32_t, 32> parts;
    int last_class = 0;
    const auto c = static_cast<utf8proc_int32_t>(next_code_point(text, pos));
    const utf8proc_ssize_t count = utf8proc_decompose_char(c, parts.data(), parts.size(), kOptions, &last_class);
    CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(parts.size()), "U+{:04X} decomposes into {}", c, count);
    code_points.insert(code_points.end(), parts.begin(), parts.begin() + count);
  }
  order_marks(code_points);
  const utf8proc_ssize_t count =
      utf8proc_normalize_utf32(code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), kOptions);
  CHECK(count >= 0, "composition failed with {}", count);
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_code_point(out, static_cast<char32_t>(code_points[i]));
  return out;
}

}  // namespace moectl
