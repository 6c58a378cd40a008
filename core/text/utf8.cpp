#include "core/text/utf8.h"

#include <utf8proc.h>

#include <cstring>

#include "core/text/newer_unicode.h"

namespace moectl {
namespace {

uint8_t byte_at(std::string_view bytes, size_t i) {
  return static_cast<uint8_t>(bytes[i]);
}

// What the first byte of a character says: its length, and the range of the second byte (Unicode, table 3-7).
struct Lead {
  int length = 0;  // 0: not a first byte
  uint8_t second_min = 0x80, second_max = 0xbf;
};

Lead lead_of(uint8_t b) {
  if (b < 0x80) return {1};
  if (b < 0xc2) return {0};
  if (b < 0xe0) return {2};
  if (b == 0xe0) return {3, 0xa0, 0xbf};
  if (b == 0xed) return {3, 0x80, 0x9f};
  if (b < 0xf0) return {3};
  if (b == 0xf0) return {4, 0x90, 0xbf};
  if (b < 0xf4) return {4};
  if (b == 0xf4) return {4, 0x80, 0x8f};
  return {0};
}

// Well-formed bytes at `pos`: `good` of the `length` that the first byte announces (length 0: no first byte).
struct Scan {
  int length, good;
};

Scan scan_character(std::string_view bytes, size_t pos) {
  const Lead lead = lead_of(byte_at(bytes, pos));
  if (lead.length == 0) return {0, 0};
  int good = 1;
  for (; good < lead.length && pos + good < bytes.size(); ++good) {
    const uint8_t b = byte_at(bytes, pos + good);
    const uint8_t low = good == 1 ? lead.second_min : 0x80, high = good == 1 ? lead.second_max : 0xbf;
    if (b < low || b > high) break;
  }
  return {lead.length, good};
}

// First position at or after `pos` that is not ASCII.
size_t skip_ascii(std::string_view bytes, size_t pos) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  for (uint64_t word; pos + sizeof(word) <= bytes.size(); pos += sizeof(word)) {
    std::memcpy(&word, bytes.data() + pos, sizeof(word));
    if (word & kHighBits) break;
  }
  while (pos < bytes.size() && byte_at(bytes, pos) < 0x80) ++pos;
  return pos;
}

bool is_newer_word_character(char32_t c) {
  for (const NewerUnicode& range : kNewerUnicode) {
    if (c < range.first || c > range.last) continue;
    const std::string_view category = range.category;
    return category[0] == 'L' || category[0] == 'M' || category == "Nd" || category == "Nl" || category == "Pc";
  }
  return false;
}

}  // namespace

size_t find_invalid_utf8(std::string_view bytes) {
  for (size_t pos = skip_ascii(bytes, 0); pos < bytes.size(); pos = skip_ascii(bytes, pos)) {
    const Scan scan = scan_character(bytes, pos);
    if (scan.length == 0 || scan.good < scan.length) return pos;
    pos += scan.length;
  }
  return std::string_view::npos;
}

char32_t next_code_point(std::string_view text, size_t& pos) {
  const uint8_t first = byte_at(text, pos++);
  if (first < 0x80) return first;
  const int following = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
  char32_t code_point = first & (0x3f >> following);
  for (int i = 0; i < following && pos < text.size(); ++i) code_point = code_point << 6 | (byte_at(text, pos++) & 0x3f);
  return code_point;
}

char32_t previous_code_point(std::string_view text, size_t end) {
  size_t pos = end - 1;
  while (pos > 0 && (byte_at(text, pos) & 0xc0) == 0x80) --pos;
  return next_code_point(text, pos);
}

void append_code_point(std::string& out, char32_t c) {
  const auto push = [&](char32_t b) { out.push_back(static_cast<char>(b)); };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xc0 | c >> 6), push(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    push(0xe0 | c >> 12), push(0x80 | (c >> 6 & 0x3f)), push(0x80 | (c & 0x3f));
  } else {
    push(0xf0 | c >> 18), push(0x80 | (c >> 12 & 0x3f)), push(0x80 | (c >> 6 & 0x3f)), push(0x80 | (c & 0x3f));
  }
}

void append_utf8_lossy(std::string& out, std::string_view bytes) {
  size_t pos = 0;
  while (pos < bytes.size()) {
    const size_t ascii_end = skip_ascii(bytes, pos);
    out.append(bytes.substr(pos, ascii_end - pos));
    pos = ascii_end;
    if (pos == bytes.size()) break;
    const Scan scan = scan_character(bytes, pos);
    if (scan.length != 0 && scan.good == scan.length) {
      out.append(bytes.substr(pos, scan.length));
      pos += scan.length;
    } else {
      out.append("\xef\xbf\xbd");
      pos += scan.length == 0 ? 1 : scan.good;
    }
  }
}

size_t incomplete_utf8_suffix(std::string_view bytes) {
  for (size_t size = 1; size <= 3 && size <= bytes.size(); ++size) {
    const size_t pos = bytes.size() - size;
    if ((byte_at(bytes, pos) & 0xc0) == 0x80) continue;  // inside a character: look further left
    const Scan scan = scan_character(bytes, pos);
    return scan.length > scan.good && scan.good == static_cast<int>(size) ? size : 0;
  }
  return 0;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_word_character(char32_t c) {
  if (c < 0x80) return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    case UTF8PROC_CATEGORY_CN:
      return is_newer_word_character(c);
    default:  // Join_Control, and the circled and squared letters that are alphabetic symbols
      return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
             (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
  }
}

}  // namespace moectl
