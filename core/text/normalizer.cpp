#include "core/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include "core/base/check.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

// Marks that the `tokenizers` library's tables (Unicode 9) do not know: there they neither move nor compose, and hold
// apart what stands on their two sides. Ids must be those the model was trained with, so they do the same here.
constexpr struct {
  char32_t first, last;
} kUnknownMarks[] = {{0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
                     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
                     {0xa82c, 0xa82c},   {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
                     {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
                     {0x11930, 0x11930}, {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34},
                     {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97},
                     {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae},
                     {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}};

bool is_unknown_mark(char32_t c) {
  if (c < kUnknownMarks[0].first) return false;
  return std::any_of(std::begin(kUnknownMarks), std::end(kUnknownMarks),
                     [&](const auto& range) { return c >= range.first && c <= range.last; });
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

constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);

void decompose(char32_t c, std::vector<utf8proc_int32_t>& code_points) {
  std::array<utf8proc_int32_t, 32> parts;
  int last_class = 0;
  const utf8proc_ssize_t count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts.data(), parts.size(), kOptions, &last_class);
  CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(parts.size()), "a character decomposes into {}", count);
  code_points.insert(code_points.end(), parts.begin(), parts.begin() + count);
}

// Appends the composition of `code_points` and empties it.
void compose(std::vector<utf8proc_int32_t>& code_points, std::string& out) {
  order_marks(code_points);
  const utf8proc_ssize_t count =
      utf8proc_normalize_utf32(code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), kOptions);
  CHECK(count >= 0, "composition failed with {}", count);
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_code_point(out, static_cast<char32_t>(code_points[i]));
  code_points.clear();
}

// NFC of text[0, size) where nothing composes across its ends.
void append_composed(std::string_view text, NfcMarks marks, std::vector<utf8proc_int32_t>& code_points,
                     std::string& out) {
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = next_code_point(text, pos);
    if (marks == NfcMarks::kUnicode9 && is_unknown_mark(c)) {
      compose(code_points, out);
      append_code_point(out, c);
    } else {
      decompose(c, code_points);
    }
  }
  compose(code_points, out);
}

// Characters that NFC leaves as they are and that join nothing before them: no marks, no vowels and tails of Hangul,
// and nothing with another canonical form. Text of such characters is composed already.
class InertCharacters {
 public:
  InertCharacters() : bits_(kEnd, false) {
    std::vector<utf8proc_int32_t> code_points;
    std::string self, composed;
    for (char32_t c = 0x80; c < kEnd; ++c) {
      const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
      const auto category = static_cast<utf8proc_category_t>(property->category);
      if (category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME ||
          category == UTF8PROC_CATEGORY_CS || property->combining_class != 0 || (c >= 0x1100 && c <= 0x11ff) ||
          is_unknown_mark(c))
        continue;
      if (property->decomp_seqindex != UINT16_MAX && property->decomp_type == 0) {
        self.clear(), composed.clear();
        append_code_point(self, c);
        append_composed(self, NfcMarks::kAll, code_points, composed);
        if (self != composed) continue;
      }
      bits_[c] = true;
    }
  }
  bool contains(char32_t c) const { return c < 0x80 || bits_[c]; }

 private:
  static constexpr char32_t kEnd = 0x110000;
  std::vector<bool> bits_;
};

// An inert character is a border: what stands before it is not changed by it. Only pieces of more than one character,
// an inert one and what follows up to the next, need work.
std::string compose_pieces(std::string_view text, NfcMarks marks) {
  static const InertCharacters inert;
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> code_points;
  size_t copied = 0, begin = 0;  // text up to `copied` is in `out`; the piece begins at `begin`
  bool composed = true;          // the piece is as NFC leaves it
  const auto end_piece = [&](size_t end) {
    if (!composed) {
      out.append(text.substr(copied, begin - copied));
      append_composed(text.substr(begin, end - begin), marks, code_points, out);
      copied = end;
    }
    begin = end;
    composed = true;
  };
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    if (inert.contains(next_code_point(text, pos))) {
      end_piece(at);
    } else {
      composed = false;
    }
  }
  end_piece(text.size());
  out.append(text.substr(copied));
  return out;
}

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  size_t done = 0;
  for (size_t at = text.find(pattern); at != std::string_view::npos; at = text.find(pattern, done)) {
    out.append(text.substr(done, at - done)).append(content);
    done = at + pattern.size();
  }
  out.append(text.substr(done));
  return out;
}

}  // namespace

std::string nfc(std::string_view text, NfcMarks marks) {
  // Below the first combining mark (U+0300) nothing composes with anything.
  const bool simple = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0xcc; });
  return simple ? std::string(text) : compose_pieces(text, marks);
}

std::string Normalizer::apply(std::string_view text, bool at_start) const {
  std::string out(text);
  for (const NormalizerStep& step : steps_) {
    switch (step.kind) {
      case NormalizerStep::Kind::kNfc:
        out = nfc(out, step.marks);
        break;
      case NormalizerStep::Kind::kPrepend:
        if (at_start && !out.empty()) out.insert(0, step.content);
        break;
      case NormalizerStep::Kind::kReplace:
        out = replace_all(out, step.pattern, step.content);
        break;
    }
  }
  return out;
}

}  // namespace moectl
