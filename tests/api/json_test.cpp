// The reader of request bodies: the same values as nlohmann's reader gives, whichever of the two inside reads a text,
// the order of keys, duplicate keys, and time that does not grow faster than the text.
#include "core/api/json.h"

#include <gmock/gmock.h>

#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "core/base/error.h"

namespace moectl::api {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using ::testing::HasSubstr;

std::string refusal_of(std::string_view text) {
  try {
    parse_json(text);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kInvalidArgument);
    return e.what();
  }
  return "";
}

// nlohmann compares 5 and 5.0 as equal.
void expect_same_types(const json& a, const json& b) {
  ASSERT_EQ(a.type(), b.type()) << a << " " << b;
  ASSERT_EQ(a.size(), b.size());
  if (!a.is_structured()) {
    ASSERT_EQ(a, b);
    return;
  }
  for (auto i = a.begin(), j = b.begin(); i != a.end(); ++i, ++j) {
    if (a.is_object()) {
      ASSERT_EQ(i.key(), j.key());
    }
    expect_same_types(*i, *j);
  }
}

TEST(ParseJson, NumbersKeepTheirKind) {
  for (std::string text :
       {"0", "5", "5.0", "-0.0", "-1", "1e5", "1E+2", "0.1", "1e-400", "9223372036854775807", "9223372036854775808",
        "18446744073709551615", "18446744073709551616", "-9223372036854775808", "-9223372036854775809",
        "3.141592653589793238462643383279", "[1, 18446744073709551616]", "\xEF\xBB\xBF{}", " \t\r\n{} \n"}) {
    SCOPED_TRACE(text);
    expect_same_types(parse_json(text), json::parse(text));
    EXPECT_EQ(parse_ordered_json(text).dump(), ordered_json::parse(text).dump());
  }
  EXPECT_EQ(parse_json("-0"), 0);
}

// Random documents, whole and damaged: nlohmann's reader is the reference for both.
TEST(ParseJson, AgreesWithNlohmann) {
  std::mt19937 random(7);
  const auto number = [&](unsigned n) { return unsigned(random() % n); };
  const std::function<std::string(int)> make = [&](int depth) -> std::string {
    static const std::vector<std::string> kScalars = {"null",
                                                      "true",
                                                      "false",
                                                      "0",
                                                      "-17",
                                                      "2.5e-3",
                                                      "1e300",
                                                      "12345678901234567890",
                                                      "\"\"",
                                                      "\"a\\u00e9\\n\\ud83d\\ude42\"",
                                                      "\"\xC3\xA9\xF0\x9F\x99\x82\"",
                                                      "123456789012345678901234567890"};
    const unsigned kind = depth > 3 ? 0 : number(4);
    if (kind < 2) return kScalars[number(unsigned(kScalars.size()) - (number(20) > 0))];
    std::string text;
    for (unsigned i = 0, n = number(12); i < n; ++i) {
      text += i ? ", " : "";
      if (kind == 2) text += "\"k" + std::to_string((i * 7) % 12) + "\": ";
      text += make(depth + 1);
    }
    return kind == 2 ? "{" + text + "}" : "[" + text + "]";
  };
  for (int round = 0; round < 1500; ++round) {
    std::string text = make(0);
    if (round % 3 == 0) text[number(unsigned(text.size()))] = char(1 + number(255));
    SCOPED_TRACE(text);
    if (!json::accept(text)) {
      EXPECT_THAT(refusal_of(text), HasSubstr("not valid JSON"));
    } else if (const std::string refusal = refusal_of(text); !refusal.empty()) {
      EXPECT_THAT(refusal, HasSubstr("occurs twice"));  // the damaged byte was part of a key
    } else {
      expect_same_types(parse_json(text), json::parse(text));
      EXPECT_EQ(parse_ordered_json(text).dump(), ordered_json::parse(text).dump());
    }
    if (HasFailure()) return;
  }
}

TEST(ParseJson, NothingFollowsANul) {
  const std::string whole = "{\"a\": 1}";
  EXPECT_THAT(refusal_of(whole + std::string("\0", 1)), HasSubstr("a NUL byte at offset 8"));
  EXPECT_THAT(refusal_of(whole + std::string("\0{\"b\": 2}", 9)), HasSubstr("a NUL byte at offset 8"));
  EXPECT_EQ(parse_json(R"("a\u0000b")"), std::string("a\0b", 3));
}

TEST(ParseJson, OrderedMember) {
  const std::string text = R"({"x": {"b": 1}, "tools": [{"z": 1, "a": {"q": [2], "b": null}}], "y": 1})";
  EXPECT_EQ(parse_ordered_member(text, "tools").dump(), R"([{"z":1,"a":{"q":[2],"b":null}}])");
  EXPECT_EQ(parse_ordered_member(text, "y"), 1);
  EXPECT_TRUE(parse_ordered_member(text, "none").is_null());
  EXPECT_TRUE(parse_ordered_member("[]", "none").is_null());
  // With an integer that simdjson does not read.
  EXPECT_EQ(parse_ordered_member(R"({"n": 123456789012345678901234567890, "tools": {"z": 1, "a": 2}})", "tools").dump(),
            R"({"z":1,"a":2})");
}

TEST(ParseJson, ManyKeysTakeLinearTime) {
  constexpr int kKeys = 200'000;
  std::string members;
  for (int i = 0; i < kKeys; ++i) members += fmt::format("\"key-{:07}\": {{}}, ", (i * 7919) % kKeys);
  const std::string twice = "the key \"key-0007919\" occurs twice";
  // By simdjson and, because of the integer, by nlohmann's reader.
  for (std::string last : {"\"last\": 0", "\"last\": 123456789012345678901234567890"}) {
    const auto start = std::chrono::steady_clock::now();
    const std::string text = "{" + members + last + "}";
    EXPECT_EQ(parse_json(text).size(), size_t(kKeys) + 1);
    const ordered_json ordered = parse_ordered_json(text);
    ASSERT_EQ(ordered.size(), size_t(kKeys) + 1);
    EXPECT_EQ(ordered.begin().key(), "key-0000000");
    EXPECT_THAT(refusal_of("{" + members + "\"key-0007919\": 1, " + last + "}"), HasSubstr(twice));
    EXPECT_THROW(parse_ordered_json("{" + members + "\"key-0007919\": 1, " + last + "}"), Error);
    // Quadratic time would be minutes.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
  }
}

TEST(ParseJson, TooManyValues) {
  std::string text = "[";
  for (size_t i = 0; i < kMaxJsonValues; ++i) text += "1,";
  EXPECT_THAT(refusal_of(text + "1]"), HasSubstr("more than 2097152 values"));
  text.resize(text.size() - 3);
  EXPECT_EQ(parse_json(text + "]").size(), kMaxJsonValues - 1);
  // Commas in strings are no values.
  EXPECT_EQ(parse_json("[\"" + std::string(3 << 20, ',') + "\"]").size(), 1u);
}

}  // namespace
}  // namespace moectl::api
