// SetMatcher finds what PCRE2 finds: all code points for every property, published patterns on random text, and
// patterns that it must leave to PCRE2.
#include "core/text/set_matcher.h"

#include <gtest/gtest.h>

#include <random>

#include "core/base/error.h"
#include "core/text/pattern_dialect.h"
#include "core/text/set_pattern.h"
#include "core/text/split_regex.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

using Matches = std::vector<std::pair<size_t, size_t>>;

Matches all_matches(const SplitRegex& regex, const std::string& text) {
  std::vector<TextRange> ranges;
  regex.find_all(text, ranges);
  Matches matches;
  for (const TextRange& range : ranges) matches.emplace_back(range.begin, range.end);
  return matches;
}

TEST(SetMatcher, KnowsEveryCharacterAsPcre2Does) {
  // One text of all characters; U+1C89, which is new in Unicode 16, makes PCRE2 use the extended classes.
  std::string text;
  std::vector<char32_t> characters;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xd800 && c <= 0xdfff) continue;
    characters.push_back(c);
    append_code_point(text, c);
  }
  for (const std::string property :
       {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "N",  "Nd", "Nl", "No", "P", "Pc", "Pd", "Ps", "Pe",
        "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "M",  "Me", "Z", "Zs", "Zl", "Zp", "Han"}) {
    const SplitRegex regex("\\p{" + property + "}", "test", SplitRegex::Engine::kPcre2);
    std::vector<TextRange> found;
    regex.find_all(text, found);
    std::vector<char32_t> expected, got;
    for (const TextRange& range : found) {
      size_t pos = range.begin;
      expected.push_back(next_code_point(text, pos));
    }
    for (const char32_t c : characters) {
      if (has_property(c, property)) got.push_back(c);
    }
    EXPECT_EQ(got, expected) << property;
  }
}

// The patterns of published tokenizers (tokenizer_kinds.py names them), and some that try every item.
const std::string kContractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const std::string kUpper = R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])", kLower = R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])";
const std::string kTail = R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::vector<std::string> kPatterns = {
    kContractions + R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)" + kTail,
    kContractions + R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)" + kTail,
    kContractions + R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"([^\r\n\p{L}\p{N}]?)" + kUpper + "*" + kLower + "+" + kContractions + R"(?|[^\r\n\p{L}\p{N}]?)" + kUpper + "+" +
        kLower + "*" + kContractions + R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)",
    R"(\p{N}{1,3})",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"([\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)" +
        kContractions + R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"([\p{L}&&[a-mA-M\p{Han}]]+|\d{2,}(?=[a-z])|\S{3})",
    R"(a{2}b{1,2}c{3,}|a+?b)",
    R"([ab]*[bc]+[cd]*d|\s{2,4}\S)",
    R"((?i:k|ss|[a-c])x?|(?:ab|a)b)"};

TEST(SetMatcher, FindsWhatPcre2Finds) {
  std::mt19937 random(17);
  const std::vector<std::u32string> sources = {
      U"abcdABCD  '\r\n\t09",
      U"aB'sS'reREllLLveVEdDtTmMk \u017f\u212a",
      U" \n\r\t\u00a0\u2003\u3000\u180e\u0085",
      U"\u4f60\u597d\u3007\u3005\u3042\u30a2\ud55c\uac00\u2e80",
      U"e\u0301\u0300\u0928\u094d\u0c3c\u02b0\u01c5\u00aa",
      U"019\u00b2\u00bd\u0661\u2167\u3007",
      U".,!/-$+\u20ac\u3002\uff01_\u00ab\U0001f600\u200d\ufe0f",
      U"\u1c89\u1c8a\u0897\U00010d4a\U0001fae9\U0002ebf0\U00031350\U0010ffff\ue000\u0378"};
  for (const std::string& pattern : kPatterns) {
    const SplitRegex fast(pattern, "test"), reference(pattern, "test", SplitRegex::Engine::kPcre2);
    for (int round = 0; round < 3000; ++round) {
      std::string text;
      for (size_t size = random() % 24; size > 0; --size) {
        const std::u32string& source = sources[random() % (random() % 3 == 0 ? sources.size() : 3)];
        const char32_t c = random() % 20 == 0 ? char32_t(random() % 0xd800) : source[random() % source.size()];
        for (size_t repeat = random() % 6 == 0 ? random() % 9 : 1; repeat > 0; --repeat) append_code_point(text, c);
      }
      ASSERT_EQ(all_matches(fast, text), all_matches(reference, text)) << pattern << "\n" << text;
    }
  }
}

std::unique_ptr<SetMatcher> compiled(const std::string& pattern) {
  return SetMatcher::compile(translate_pattern(pattern, true, "test"));
}

TEST(SetMatcher, TakesPublishedPatternsAndLeavesOthers) {
  for (size_t i = 0; i < 10; ++i) EXPECT_NE(compiled(kPatterns[i]), nullptr) << kPatterns[i];
  for (const char* pattern : {"a*",      "a?b?",    "(?=a)",   "^a",        "a$",      "a+?b",       "(?:a+)+",
                              "(a|b*)c", "(?<=a)b", "(?>a+)b", ".",         "\\Aa",    "(?i:[a-z])", "(?i:\u00e9)",
                              "(?:a|)b", "a|",      "|a",      "(?:ab){2}", "(?!ab)c", "[^\\p{L}]?"}) {
    EXPECT_EQ(compiled(pattern), nullptr) << pattern;
  }
  std::string many;
  for (char c = 'a'; c <= 'z'; ++c) many += std::string("[") + c + "0]" + c + "|";
  EXPECT_EQ(compiled(many + "x"), nullptr);  // more sets than bits
  std::string ranges = "[";
  for (int i = 0; i < 600; ++i) ranges += fmt::format("\\x{{{:x}}}", 0x4e00 + 2 * i);
  EXPECT_EQ(compiled(ranges + "]+"), nullptr);
}

TEST(SetMatcher, GivesUpWhereGoingBackTakesTooLong) {
  const auto matcher = compiled("[ab]*[bc]*[cd]*d|a");
  ASSERT_NE(matcher, nullptr);
  std::vector<TextRange> matches;
  SetMatcher::Cursor slow, quick;
  EXPECT_FALSE(matcher->find_some(std::string(20'000, 'b'), 100, slow, matches));
  EXPECT_TRUE(matches.empty());
  EXPECT_TRUE(matcher->find_some("abcd", 100, quick, matches));
  EXPECT_EQ(matches.size(), 1u);
}

}  // namespace
}  // namespace moectl
