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

// Text -> the field of a flag, by the field's type. A flag given twice: the last value counts.
struct Setter {
  RawOptions& raw;
  const Flag& flag;
  const std::vector<GivenValue>& values;

  template <class T>
  void operator()(FieldOf<T> field) const {
    set(field(raw));
  }

 private:
  const GivenValue& last() const { return values.back(); }
  int64_t number() const { return parse_number(flag, last(), last().text); }

  template <class T>
  void set(std::optional<T>& field) const {
    set(field.emplace());
  }
  void set(bool& field) const { field = parse_switch(flag, last()); }
  void set(int& field) const { field = int(number()); }
  void set(uint64_t& field) const { field = uint64_t(number()); }
  void set(int64_t& field) const { field = parse_bytes(flag, last()); }
  void set(double& field) const { field = parse_decimal(flag, last()); }
  void set(std::chrono::seconds& field) const { field = std::chrono::seconds(number()); }
  void set(std::string& field) const { field = parse_text(flag, last()); }
  void set(std::vector<std::string>& field) const {
    field.clear();
    for (const GivenValue& given : values) field.push_back(parse_text(flag, given));
  }
  void set(std::vector<int>& field) const { field = parse_numbers(flag, values); }
};

std::string text_of(bool value) {
  return value ? "on" : "";
}
std::string text_of(int64_t bytes) {
  return byte_text(bytes);
}
std::string text_of(std::chrono::seconds value) {
  return fmt::format("{}", value.count());
}
template <class T>
std::string text_of(const T& value) {
  return fmt::format("{}", value);
}
template <class T>
std::string text_of(const std::optional<T>&) {
  return "";  // no default of its own
}
template <class T>
std::string text_of(const std::vector<T>& values) {
  return fmt::format("{}", fmt::join(values, ","));
}

template <class... T>
bool holds_any(const Target& target) {
  return (std::holds_alternative<FieldOf<T>>(target) || ...);
}

}  // namespace

bool Flag::is_switch() const {
  return holds_any<bool, std::optional<bool>>(target);
}

bool Flag::is_list() const {
  return holds_any<std::vector<std::string>, std::vector<int>>(target);
}

bool Flag::belongs_to(std::string_view command) const {
  return std::find(commands.begin(), commands.end(), command) != commands.end();
}

void set_value(RawOptions& raw, const Flag& flag, const std::vector<GivenValue>& values) {
  std::visit(Setter{raw, flag, values}, flag.target);
}

std::string default_text(const Flag& flag) {
  if (!flag.shown_default.empty()) return std::string(flag.shown_default);
  RawOptions defaults;
  return std::visit([&](auto field) { return text_of(field(defaults)); }, flag.target);
}

}  // namespace moectl
