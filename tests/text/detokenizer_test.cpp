#include "core/text/detokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "core/base/error.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

using Ids = std::vector<int32_t>;

std::shared_ptr<const Tokenizer> demo() {
  static const auto tokenizer = Tokenizer::load(std::filesystem::path(MOECTL_SOURCE_DIR) / "models" / "demo");
  return tokenizer;
}

// One token a byte, so that a test decides where tokens end.
Ids byte_tokens(std::string_view bytes) {
  static const std::vector<int32_t> ids = [] {
    std::vector<int32_t> found(256, -1);
    for (int32_t id = 0; id < demo()->vocab_size(); ++id) {
      const std::string_view token = demo()->token_bytes(id);
      if (token.size() == 1) found[static_cast<uint8_t>(token[0])] = id;
    }
    return found;
  }();
  Ids tokens;
  for (const char c : bytes) tokens.push_back(ids[static_cast<uint8_t>(c)]);
  return tokens;
}

struct Answer {
  std::vector<std::string> chunks;  // one a push, and finish()
  std::string text;
  bool stopped;
  std::string stop;
};

Answer stream(const Ids& ids, Detokenizer::Options options) {
  Detokenizer detokenizer(demo(), std::move(options));
  Answer answer;
  for (const int32_t id : ids) answer.chunks.push_back(detokenizer.push(id));
  answer.chunks.push_back(detokenizer.finish());
  for (const std::string& chunk : answer.chunks) {
    EXPECT_TRUE(is_valid_utf8(chunk));
    answer.text += chunk;
  }
  answer.stopped = detokenizer.stopped();
  answer.stop = detokenizer.stop_string();
  EXPECT_EQ(detokenizer.finish(), "");
  return answer;
}

Answer stream(std::string_view bytes, std::vector<std::string> stop, bool include_stop = false) {
  return stream(byte_tokens(bytes), {.stop = std::move(stop), .include_stop = include_stop});
}

TEST(Detokenizer, HoldsBackIncompleteCharacters) {
  EXPECT_EQ(stream("a\u4f60b", {}).chunks, (std::vector<std::string>{"a", "", "", "\u4f60", "b", ""}));
  EXPECT_EQ(stream("\xf0\x9f\x98", {}).chunks, (std::vector<std::string>{"", "", "", "\ufffd"}));
  EXPECT_EQ(stream("\xf0\x9f"
                   "a",
                   {})
                .chunks,
            (std::vector<std::string>{"", "",
                                      "\ufffd"
                                      "a",
                                      ""}));
  EXPECT_EQ(stream("\x80", {}).chunks, (std::vector<std::string>{"\ufffd", ""}));
}

TEST(Detokenizer, EqualsDecodeForAnyTokens) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    Ids ids(random() % 20);
    for (int32_t& id : ids) {
      switch (random() % 4) {
        case 0:
          id = static_cast<int32_t>(random() % 8);
          break;  // added tokens
        case 1:
          id = byte_tokens(std::string(1, static_cast<char>(0x80 + random() % 0x80)))[0];
          break;
        default:
          id = static_cast<int32_t>(random() % 4200) - 50;  // some are outside the vocabulary
      }
      if (id < -1) id = -1;
    }
    for (const bool skip_special : {false, true}) {
      // A stop string that never comes must change nothing but when text is released.
      for (const std::vector<std::string>& stop :
           {std::vector<std::string>{}, {"\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd|", "in the end of it"}}) {
        const Answer answer = stream(ids, {.stop = stop, .skip_special = skip_special});
        EXPECT_EQ(answer.text, demo()->decode(ids, skip_special));
        EXPECT_FALSE(answer.stopped);
      }
    }
  }
}

TEST(Detokenizer, StopsAcrossTokens) {
  const Answer answer = stream("one\n\nUser: two", {"\n\nUser:"});
  EXPECT_EQ(answer.text, "one");
  EXPECT_TRUE(answer.stopped);
  EXPECT_EQ(answer.stop, "\n\nUser:");
  EXPECT_EQ(answer.chunks[2], "e");  // nothing of the stop string was ever shown
  EXPECT_EQ(stream("one\n\nUser: two", {"\n\nUser:"}, true).text, "one\n\nUser:");
  EXPECT_EQ(stream("one\n\nUser", {"\n\nUser:"}).text, "one\n\nUser");  // the end releases what was held back
  EXPECT_EQ(stream("one\n\nUsers", {"\n\nUser:"}).chunks[9], "\n\nUsers");
  EXPECT_EQ(stream("a\u4f60\u597d!", {"\u597d"}).text, "a\u4f60");
}

TEST(Detokenizer, StopInsideAToken) {
  const auto hello = demo()->encode(" the");
  ASSERT_EQ(hello.size(), 1u);
  EXPECT_EQ(stream(hello, {.stop = {"h"}}).text, " t");
  EXPECT_EQ(stream(hello, {.stop = {"h"}, .include_stop = true}).text, " th");
  // Both are complete in this token: the one that begins first counts, then the one listed first.
  EXPECT_EQ(stream(hello, {.stop = {"he", "th"}}).stop, "th");
  EXPECT_EQ(stream(hello, {.stop = {"the", "th"}}).stop, "the");
  EXPECT_EQ(stream(hello, {.stop = {"th", "the"}}).stop, "th");
}

TEST(Detokenizer, RepeatingStopStrings) {
  EXPECT_EQ(stream("aaab", {"aab"}).text, "a");
  EXPECT_EQ(stream("ababaababac", {"ababac"}).text, "ababa");
  EXPECT_EQ(stream("xx\n\n\n", {"\n\n\n\n", "\n\n"}).text, "xx");
  EXPECT_EQ(stream("abcabd", {"abd", "bca"}).text, "a");
}

// Where a stop string comes first must not depend on how its text was cut into tokens.
TEST(Detokenizer, FindsTheFirstOccurrenceOfOneStop) {
  std::mt19937 random(5);
  const auto random_text = [&](size_t size) {
    std::string text;
    while (text.size() < size) text += "ab\n"[random() % 3];
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    const std::string text = random_text(random() % 30), stop = random_text(1 + random() % 5);
    const size_t at = text.find(stop);
    for (const Ids& ids : {byte_tokens(text), demo()->encode(text)}) {
      const Answer answer = stream(ids, {.stop = {stop}});
      EXPECT_EQ(answer.stopped, at != std::string::npos);
      EXPECT_EQ(answer.text, text.substr(0, at)) << text << "|" << stop;
    }
  }
}

TEST(Detokenizer, SpecialTokensGiveNoText) {
  const Ids ids = {byte_tokens("a")[0], 0, byte_tokens("b")[0], 1};
  EXPECT_EQ(stream(ids, {}).text, "ab");
  EXPECT_EQ(stream(ids, {.stop = {"ab"}}).text, "");
  EXPECT_EQ(stream(ids, {.skip_special = false}).text, demo()->decode(ids, false));
}

TEST(Detokenizer, RefusesBadStopStrings) {
  for (const std::string stop : {"", "\xff", "a\xe4\xbd"}) {
    try {
      Detokenizer(demo(), {.stop = {"fine", stop}});
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kInvalidArgument);
      EXPECT_EQ(e.param(), "stop");
    }
  }
}

TEST(Detokenizer, NothingComesAfterTheStop) {
  Detokenizer detokenizer(demo(), {.stop = {"b"}});
  EXPECT_EQ(detokenizer.push(byte_tokens("a")[0]), "a");
  EXPECT_EQ(detokenizer.push(byte_tokens("b")[0]), "");
  EXPECT_TRUE(detokenizer.stopped());
  EXPECT_EQ(detokenizer.push(byte_tokens("c")[0]), "");
  EXPECT_EQ(detokenizer.finish(), "");
}

}  // namespace
}  // namespace moectl
