// Methods of Python's str that the immutable sandbox allows.
#include <fmt/core.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "core/jinja/functions.h"

namespace moectl::jinja {
namespace {

Value list_of(Context& ctx, std::vector<Str> parts, Sequence kind = Sequence::kList) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (Str& part : parts) items.emplace_back(std::move(part));
  return make_list(ctx, std::move(items), kind);
}

// ------------------------------------------------------------------------------------------------ split and join
// By whitespace, as split() and rsplit() without separator.
std::vector<Str> split_whitespace(Context& ctx, const Str& s, int64_t max_splits, bool from_right) {
  const std::string& text = s.text();
  std::vector<std::pair<size_t, size_t>> words;
  for (size_t pos = 0; pos < text.size();) {
    while (pos < text.size() && is_space(char_at(text, pos))) pos += char_bytes(text, pos);
    size_t begin = pos;
    while (pos < text.size() && !is_space(char_at(text, pos))) pos += char_bytes(text, pos);
    if (pos > begin) words.emplace_back(begin, pos);
  }
  ctx.step(static_cast<int64_t>(words.size()));
  // Once the splits are used up, the rest is one piece with the whitespace at its far end.
  if (max_splits >= 0 && static_cast<int64_t>(words.size()) > max_splits) {
    auto keep = static_cast<size_t>(max_splits);
    if (from_right) {
      words.erase(words.begin(), words.end() - static_cast<std::ptrdiff_t>(keep) - 1);
      words.front().first = 0;
    } else {
      words.resize(keep + 1);
      words.back().second = text.size();
    }
  }
  std::vector<Str> parts;
  for (auto [begin, end] : words) parts.push_back(s.slice(begin, end));
  return parts;
}

std::vector<Str> split_by(Context& ctx, const Str& s, const std::string& separator, int64_t max_splits,
                          bool from_right) {
  if (separator.empty()) fail("split: the separator is empty");
  std::vector<size_t> places;
  for (size_t pos = 0; (pos = find_bytes(s.text(), separator, pos)) != std::string::npos; pos += separator.size()) {
    ctx.step();
    places.push_back(pos);
    if (!from_right && max_splits >= 0 && static_cast<int64_t>(places.size()) > max_splits) break;
  }
  if (from_right && max_splits >= 0) {  // count matches from the end; they may lie differently when they overlap
    std::string backward(s.text().rbegin(), s.text().rend()), needle(separator.rbegin(), separator.rend());
    places.clear();
    for (size_t pos = 0; static_cast<int64_t>(places.size()) < max_splits &&
                         (pos = find_bytes(backward, needle, pos)) != std::string::npos;
         pos += needle.size()) {
      ctx.step();
      places.push_back(s.size() - pos - needle.size());
    }
    std::reverse(places.begin(), places.end());
  } else if (max_splits >= 0 && static_cast<int64_t>(places.size()) > max_splits) {
    places.resize(static_cast<size_t>(max_splits));
  }
  std::vector<Str> parts;
  size_t begin = 0;
  for (size_t at : places) {
    parts.push_back(s.slice(begin, at));
    begin = at + separator.size();
  }
  parts.push_back(s.slice(begin, s.size()));
  return parts;
}

Value split(Context& ctx, const Value& self, Args& args, const char* name, bool from_right) {
  Bound a = bind(args, name, {"sep", "maxsplit"});
  ctx.bytes(self.str().size());
  int64_t max_splits = a[1] ? integer_argument(*a[1], "split: maxsplit") : -1;
  if (!a[0] || a[0]->is_none()) return list_of(ctx, split_whitespace(ctx, self.str(), max_splits, from_right));
  const std::string& separator = string_argument(*a[0], "split: sep").text();
  return list_of(ctx, split_by(ctx, self.str(), separator, max_splits, from_right));
}
Value str_split(Context& ctx, const Value& self, Args& args) {
  return split(ctx, self, args, "split", false);
}
Value str_rsplit(Context& ctx, const Value& self, Args& args) {
  return split(ctx, self, args, "rsplit", true);
}

Value str_splitlines(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "splitlines", {"keepends"});
  return list_of(ctx, split_lines(ctx, self.str(), a[0] && truthy(*a[0])));
}

Value partition(Context& ctx, const Value& self, Args& args, bool from_right) {
  Bound a = bind(args, "partition", {"sep"});
  if (!a[0] || string_argument(*a[0], "partition: sep").empty()) fail("partition needs a separator that is not empty");
  const Str &s = self.str(), &separator = a[0]->str();
  ctx.bytes(2 * s.size());
  size_t at = from_right ? find_last_bytes(s.text(), separator.text()) : find_bytes(s.text(), separator.text());
  if (at == std::string::npos) {
    if (from_right) return list_of(ctx, {Str(), Str(), s}, Sequence::kTuple);
    return list_of(ctx, {s, Str(), Str()}, Sequence::kTuple);
  }
  size_t end = at + separator.size();
  return list_of(ctx, {s.slice(0, at), separator, s.slice(end, s.size())}, Sequence::kTuple);
}
Value str_partition(Context& ctx, const Value& self, Args& args) {
  return partition(ctx, self, args, false);
}
Value str_rpartition(Context& ctx, const Value& self, Args& args) {
  return partition(ctx, self, args, true);
}

Value str_join(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "join", {"iterable"});
  if (!a[0]) fail("join needs an iterable");
  return join_text(ctx, iterate(ctx, *a[0])->items, self.str(), false);
}

Value str_replace(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "replace", {"old", "new", "count"});
  if (!a[0] || !a[1]) fail("replace needs the old and the new text");
  return replace_text(ctx, self.str(), string_argument(*a[0], "replace: old"), string_argument(*a[1], "replace: new"),
                      a[2] ? integer_argument(*a[2], "replace: count") : -1);
}

// ------------------------------------------------------------------------------------------------ strip, case, padding
template <bool kLeft, bool kRight>
Value str_strip(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "strip", {"chars"});
  const std::string* chars = a[0] && !a[0]->is_none() ? &string_argument(*a[0], "strip: chars").text() : nullptr;
  ctx.bytes(self.str().size() * (1 + (chars ? chars->size() : 0)));
  return Value(strip(self.str(), chars, kLeft, kRight).marked(self.str().is_markup()));
}

template <Str (*Map)(const Str&)>
Value str_case(Context& ctx, const Value& self, Args& args) {
  bind(args, "a case method", {});
  ctx.bytes(self.str().size() * 8);
  Str out = Map(self.str());
  ctx.check_size(out.size());
  return Value(std::move(out).marked(self.str().is_markup()));
}

template <int kSide>  // -1: text at the left, 0: centred, 1: at the right
Value str_pad(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "padding", {"width", "fillchar"});
  if (!a[0]) fail("padding needs a width");
  ctx.bytes(self.str().size());
  auto size = static_cast<int64_t>(count_chars(self.text()));
  int64_t width = integer_argument(*a[0], "width");
  int64_t missing = width > size ? width - size : 0;
  int64_t left = kSide < 0 ? 0 : kSide > 0 ? missing : missing / 2 + (missing & width & 1);
  Str fill = a[1] ? string_argument(*a[1], "fillchar") : Str(" ", false);
  return pad_text(ctx, self.str(), left, missing - left, fill);
}

Value str_zfill(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "zfill", {"width"});
  if (!a[0]) fail("zfill needs a width");
  auto size = static_cast<int64_t>(count_chars(self.text()));
  int64_t width = integer_argument(*a[0], "width");
  size_t sign = !self.str().empty() && (self.text()[0] == '-' || self.text()[0] == '+') ? 1 : 0;
  Str out = self.str().slice(0, sign);
  out.append(repeat_text(ctx, Str("0", false), width > size ? width - size : 0).str());
  out.append(self.str(), sign, self.str().size());
  return Value(std::move(out));
}

// ------------------------------------------------------------------------------------------------ questions
// The bytes between the characters `start` and `end`, which count and clamp as in a slice. `skipped` is the number of
// characters before them. False when `start` lies behind `end`: then nothing is found, not even "".
bool clamp_range(Context& ctx, const std::string& text, const Value* start, const Value* end, std::string_view* range,
                 int64_t* skipped) {
  *skipped = 0;
  *range = text;
  auto given = [](const Value* v) { return v && !v->is_none(); };
  if (!given(start) && !given(end)) return true;
  ctx.bytes(2 * text.size());
  auto size = static_cast<int64_t>(count_chars(text));
  auto bound = [&](const Value* v, int64_t missing) {
    if (!given(v)) return missing;
    int64_t i = integer_argument(*v, "start and end");
    return i < 0 ? std::max<int64_t>(i + size, 0) : i;
  };
  int64_t first = bound(start, 0), last = std::min(bound(end, size), size);
  if (first > last) return false;
  auto offset = [&](int64_t chars) {
    size_t pos = 0;
    for (; chars > 0; --chars) pos += char_bytes(text, pos);
    return pos;
  };
  *skipped = first;
  *range = std::string_view(text).substr(offset(first), offset(last) - offset(first));
  return true;
}

template <bool kAtEnd>
Value str_affix(Context& ctx, const Value& self, Args& args) {  // startswith, endswith
  Bound a = bind(args, kAtEnd ? "endswith" : "startswith", {"affix", "start", "end"});
  if (!a[0]) fail("startswith and endswith need an argument");
  std::string_view text;
  int64_t skipped;
  bool in_range = clamp_range(ctx, self.text(), a[1], a[2], &text, &skipped);
  auto matches = [&](const Value& v) {
    const std::string& affix = string_argument(v, "the prefix or suffix").text();
    ctx.bytes(affix.size());
    return in_range && (kAtEnd ? text.ends_with(affix) : text.starts_with(affix));
  };
  if (!a[0]->is_list() || a[0]->list().kind != Sequence::kTuple) return Value(matches(*a[0]));
  for (const Value& v : a[0]->list().items)
    if (matches(v)) return Value(true);
  return Value(false);
}

template <bool kAtEnd>
Value str_remove_affix(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, kAtEnd ? "removesuffix" : "removeprefix", {"affix"});
  if (!a[0]) fail("removeprefix and removesuffix need an argument");
  const std::string& affix = string_argument(*a[0], "the prefix or suffix").text();
  const Str& s = self.str();
  ctx.bytes(s.size());
  if (kAtEnd) return Value(s.text().ends_with(affix) ? s.slice(0, s.size() - affix.size()) : s);
  return Value(s.text().starts_with(affix) ? s.slice(affix.size(), s.size()) : s);
}

template <bool kFromRight, bool kMustExist>
Value str_find(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "find", {"sub", "start", "end"});
  if (!a[0]) fail("find needs the text to look for");
  const std::string& sub = string_argument(*a[0], "find: sub").text();
  std::string_view text;
  int64_t skipped;
  if (clamp_range(ctx, self.text(), a[1], a[2], &text, &skipped)) {
    ctx.bytes(3 * text.size());
    size_t at = kFromRight ? find_last_bytes(text, sub) : find_bytes(text, sub);
    if (at != std::string::npos) return Value(skipped + static_cast<int64_t>(count_chars(text.substr(0, at))));
  }
  if (kMustExist) fail("index: the text does not occur");
  return Value(int64_t{-1});
}

Value str_count(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "count", {"sub", "start", "end"});
  if (!a[0]) fail("count needs the text to look for");
  const std::string& sub = string_argument(*a[0], "count: sub").text();
  std::string_view text;
  int64_t skipped, count = 0;
  if (!clamp_range(ctx, self.text(), a[1], a[2], &text, &skipped)) return Value(count);
  ctx.bytes(text.size());
  if (sub.empty()) return Value(static_cast<int64_t>(count_chars(text)) + 1);
  for (size_t pos = 0; (pos = find_bytes(text, sub, pos)) != std::string::npos; pos += sub.size()) ++count;
  ctx.step(count);
  return Value(count);
}

template <bool (*Holds)(char32_t)>
Value str_all(Context& ctx, const Value& self, Args& args) {
  bind(args, "a string test", {});
  const std::string& text = self.text();
  ctx.bytes(text.size() * 4);
  for (size_t pos = 0; pos < text.size(); pos += char_bytes(text, pos))
    if (!Holds(char_at(text, pos))) return Value(false);
  return Value(!text.empty());
}
bool is_alphanumeric(char32_t c) {
  return is_alpha(c) || is_digit(c);
}

Value str_islower(Context& ctx, const Value& self, Args& args) {
  return find_test("lower")(ctx, self, args);
}
Value str_isupper(Context& ctx, const Value& self, Args& args) {
  return find_test("upper")(ctx, self, args);
}

template <bool (*Holds)(char32_t)>
Value str_none_but(Context& ctx, const Value& self, Args& args) {  // like str_all, and true for ""
  return Value(self.str().empty() || str_all<Holds>(ctx, self, args).boolean());
}
bool is_ascii(char32_t c) {
  return c < 0x80;
}

// Each run of cased letters begins with an upper case letter and has no other.
Value str_istitle(Context& ctx, const Value& self, Args& args) {
  bind(args, "istitle", {});
  const std::string& text = self.text();
  ctx.bytes(text.size() * 4);
  bool in_word = false, found = false;
  for (size_t pos = 0; pos < text.size(); pos += char_bytes(text, pos)) {
    char32_t c = char_at(text, pos);
    if (in_word ? is_upper(c) : is_lower(c)) return Value(false);
    in_word = is_upper(c) || is_lower(c);
    found = found || in_word;
  }
  return Value(found);
}

Value not_supported(Context&, const Value&, Args&) {
  fail("this string method is not supported in chat templates");
}

Value not_supported_on_markup(Context&, const Value&, Args&) {
  fail("this string method is not supported on text that safe or escape returned");
}

}  // namespace

Native find_string_method(std::string_view name, bool on_markup) {
  static const std::unordered_map<std::string_view, Native> kMethods = {
      {"split", str_split},
      {"rsplit", str_rsplit},
      {"splitlines", str_splitlines},
      {"partition", str_partition},
      {"rpartition", str_rpartition},
      {"join", str_join},
      {"replace", str_replace},
      {"strip", str_strip<true, true>},
      {"lstrip", str_strip<true, false>},
      {"rstrip", str_strip<false, true>},
      {"upper", str_case<to_upper>},
      {"lower", str_case<to_lower>},
      {"title", str_case<title_words>},
      {"capitalize", str_case<to_capitalized>},
      {"swapcase", str_case<swap_case>},
      {"ljust", str_pad<-1>},
      {"center", str_pad<0>},
      {"rjust", str_pad<1>},
      {"zfill", str_zfill},
      {"startswith", str_affix<false>},
      {"endswith", str_affix<true>},
      {"removeprefix", str_remove_affix<false>},
      {"removesuffix", str_remove_affix<true>},
      {"find", str_find<false, false>},
      {"index", str_find<false, true>},
      {"rfind", str_find<true, false>},
      {"rindex", str_find<true, true>},
      {"count", str_count},
      {"isspace", str_all<is_space>},
      {"isalpha", str_all<is_alpha>},
      {"isdecimal", str_all<is_digit>},
      {"isdigit", str_all<is_digit>},
      {"isalnum", str_all<is_alphanumeric>},
      {"islower", str_islower},
      {"isupper", str_isupper},
      {"casefold", not_supported},
      {"encode", not_supported},
      {"expandtabs", not_supported},
      {"format", str_format},
      {"format_map", not_supported},
      {"isascii", str_none_but<is_ascii>},
      {"isidentifier", not_supported},
      {"isnumeric", not_supported},
      {"isprintable", str_none_but<is_printable>},
      {"istitle", str_istitle},
      {"maketrans", not_supported},
      {"translate", not_supported},
  };
  // Python's Markup escapes the arguments of these, or returns Markup in containers: too rare to be worth it.
  static const std::unordered_set<std::string_view> kNotOnMarkup = {
      "split", "rsplit", "splitlines", "partition", "rpartition",   "join",         "replace",
      "ljust", "center", "rjust",      "zfill",     "removeprefix", "removesuffix", "format"};
  auto found = kMethods.find(name);
  if (found == kMethods.end()) return nullptr;
  return on_markup && kNotOnMarkup.count(name) ? not_supported_on_markup : found->second;
}

}  // namespace moectl::jinja
