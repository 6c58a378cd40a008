// Text -> typed value, with the range and the choices of the flag, and the default as --help shows it.
#include <fmt/format.h>
#include <algorithm>
#include <charconv>
#include <cmath>

#include "cmd/flags/flags.h"

namespace moectl {
namespace {

[[noreturn]] void refuse(const Flag& flag, const GivenValue& given, std::string_view expected) {
  const std::string shown = flag.secret ? "the value" : fmt::format("'{}'", given.text);
  throw Error(given.code, fmt::format("{}: {} is not {}", given.origin, shown, expected));
}

std::string byte_text(int64_t bytes) {
  const char* units[] = {"", "K", "M", "G", "T"};
  int unit = 0;
  while (unit < 4 && bytes >= 1024 && bytes % 1024 == 0) bytes /= 1024, ++unit;
  return fmt::format("{}{}", bytes, units[unit]);
}

int64_t parse_number(const Flag& flag, const GivenValue& given, const std::string& text) {
  int64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < flag.min || value > flag.max)
    refuse(flag, {text, given.origin, given.code}, fmt::format("a whole number from {} to {}", flag.min, flag.max));
  return value;
}

double parse_decimal(const Flag& flag, const GivenValue& given) {
  double value = 0;
  const char* end = given.text.data() + given.text.size();
  const auto [rest, error] = std::from_chars(given.text.data(), end, value);
  if (error != std::errc{} || rest != end || !(value >= double(flag.min) && value <= double(flag.max)))
    refuse(flag, given, fmt::format("a number from {} to {}", flag.min, flag.max));
  return value;
}

// 512M, 1.5G, 1GiB, 500MB, 1048576
int64_t parse_bytes(const Flag& flag, const GivenValue& given) {
  const auto expected = [&] {
    return fmt::format("a size from {} to {}, such as 512M, 2G or 1GiB", byte_text(flag.min), byte_text(flag.max));
  };
  double number = 0;
  const char* begin = given.text.data();
  const char* end = begin + given.text.size();
  auto [rest, error] = std::from_chars(begin, end, number, std::chars_format::fixed);
  if (error != std::errc{} || !std::isfinite(number)) refuse(flag, given, expected());
  std::string_view unit(rest, end);
  double scale = 1;
  if (!unit.empty() && unit != "B") {
    const std::string_view letters = "KMGT";
    const size_t power = letters.find(char(std::toupper(static_cast<unsigned char>(unit[0]))));
    const std::string_view tail = unit.substr(1);
    const bool lower = unit[0] >= 'a';
    if (power == letters.npos || (tail != "" && tail != "iB" && tail != "B")) refuse(flag, given, expected());
    const bool decimal = tail == "B" || (tail.empty() && lower);
    scale = std::pow(decimal ? 1000.0 : 1024.0, double(power + 1));
  }
  const double bytes = number * scale;
  if (!(bytes >= double(flag.min) && bytes <= double(flag.max))) refuse(flag, given, expected());
  return int64_t(bytes);
}

bool parse_switch(const Flag& flag, const GivenValue& given) {
  std::string text = given.text;
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  for (std::string_view yes : {"true", "1", "yes", "on"})
    if (text == yes) return true;
  for (std::string_view no : {"false", "0", "no", "off"})
    if (text == no) return false;
  refuse(flag, given, "true or false");
}

std::string parse_text(const Flag& flag, const GivenValue& given) {
  if (given.text.empty()) throw Error(given.code, fmt::format("{}: the value is empty", given.origin));
  if (given.text.find('\0') != std::string::npos) refuse(flag, given, "text without NUL bytes");
  if (flag.choices.empty()) return given.text;
  std::string text = given.text;
  const auto is = [&text](std::string_view choice) {  // deepseek-r1 is deepseek_r1
    const auto same = [](char a, char b) { return (a == '-' ? '_' : a) == (b == '-' ? '_' : b); };
    return std::equal(text.begin(), text.end(), choice.begin(), choice.end(), same);
  };
  for (std::string_view choice : flag.choices)
    if (is(choice)) return std::string(choice);
  for (const auto& [synonym, choice] : flag.synonyms)
    if (is(synonym)) return std::string(choice);
  const std::string near = closest(text, {flag.choices.begin(), flag.choices.end()});
  refuse(flag, given,
         fmt::format("one of {}{}", fmt::join(flag.choices, ", "),
                     near.empty() ? "" : fmt::format(" (did you mean `{}`?)", near)));
}

std::vector<int> parse_numbers(const Flag& flag, const std::vector<GivenValue>& values) {
  std::vector<int> result;
  for (const GivenValue& given : values) {
    for (size_t begin = 0; begin <= given.text.size();) {
      const size_t end = std::min(given.text.find(',', begin), given.text.size());
      result.push_back(int(parse_number(flag, given, given.text.substr(begin, end - begin))));
      begin = end + 1;
    }
  }
  return result;
}

struct Setter {
  Options& options;
  const Flag& flag;
  const std::vector<GivenValue>& values;
  const GivenValue& last() const { return values.back(); }  // a flag given twice: the last one counts

  void operator()(MemberOf<bool> m) const { m(options) = parse_switch(flag, last()); }
  void operator()(MemberOf<int> m) const { m(options) = int(parse_number(flag, last(), last().text)); }
  void operator()(MemberOf<uint64_t> m) const { m(options) = uint64_t(parse_number(flag, last(), last().text)); }
  void operator()(MemberOf<int64_t> m) const { m(options) = parse_bytes(flag, last()); }
  void operator()(MemberOf<double> m) const { m(options) = parse_decimal(flag, last()); }
  void operator()(MemberOf<std::chrono::seconds> m) const {
    m(options) = std::chrono::seconds(parse_number(flag, last(), last().text));
  }
  void operator()(MemberOf<std::string> m) const { m(options) = parse_text(flag, last()); }
  void operator()(MemberOf<std::vector<std::string>> m) const {
    std::vector<std::string> result;
    for (const GivenValue& given : values) result.push_back(parse_text(flag, given));
    m(options) = std::move(result);
  }
  void operator()(MemberOf<std::vector<int>> m) const { m(options) = parse_numbers(flag, values); }
};

struct DefaultPrinter {
  mutable Options options;
  std::string operator()(MemberOf<bool> m) const { return m(options) ? "on" : ""; }
  std::string operator()(MemberOf<int> m) const { return fmt::format("{}", m(options)); }
  std::string operator()(MemberOf<uint64_t> m) const { return fmt::format("{}", m(options)); }
  std::string operator()(MemberOf<int64_t> m) const { return byte_text(m(options)); }
  std::string operator()(MemberOf<double> m) const { return fmt::format("{}", m(options)); }
  std::string operator()(MemberOf<std::chrono::seconds> m) const { return fmt::format("{}", m(options).count()); }
  std::string operator()(MemberOf<std::string> m) const { return m(options); }
  std::string operator()(MemberOf<std::vector<std::string>> m) const {
    return fmt::format("{}", fmt::join(m(options), ","));
  }
  std::string operator()(MemberOf<std::vector<int>> m) const { return fmt::format("{}", fmt::join(m(options), ",")); }
};

}  // namespace

bool Flag::is_list() const {
  return std::holds_alternative<MemberOf<std::vector<std::string>>>(target) ||
         std::holds_alternative<MemberOf<std::vector<int>>>(target);
}

bool Flag::belongs_to(std::string_view command) const {
  return std::find(commands.begin(), commands.end(), command) != commands.end();
}

void set_value(Options& options, const Flag& flag, const std::vector<GivenValue>& values) {
  std::visit(Setter{options, flag, values}, flag.target);
}

std::string default_text(const Flag& flag) {
  if (!flag.shown_default.empty()) return std::string(flag.shown_default);
  return std::visit(DefaultPrinter{}, flag.target);
}

}  // namespace moectl
