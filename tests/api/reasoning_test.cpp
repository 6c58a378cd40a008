#include <gtest/gtest.h>

#include <string>

#include "core/api/reasoning.h"

namespace moectl::api {
namespace {

struct Case {
  std::string answer;
  bool opened;
  std::string reasoning, content;
};

const Case kCases[] = {
    {"", false, "", ""},
    {"541", false, "", "541"},
    {"<think>\n4 + 7 = 11\n</think>\n\n384 + 157 = 541", false, "4 + 7 = 11", "384 + 157 = 541"},
    {"\n <think>a</think>b", false, "a", "b"},
    {"<think>never closed\n", false, "never closed\n", ""},
    {"<think>a\n\nb </think>", false, "a\n\nb", ""},
    {"<think></think>only content", false, "", "only content"},
    {"<think>a</think>b <think>c</think>", false, "a", "b <think>c</think>"},
    {"so <think>a</think>", false, "", "so <think>a</think>"},
    {"<thinking>", false, "", "<thinking>"},
    {"<thin", false, "", "<thin"},
    {"  ", false, "", "  "},
    {"<think>1 < 2 </thin", false, "1 < 2 </thin", ""},
    {"<think>a </ think></think>b", false, "a </ think>", "b"},
    {"<think><</think></think>x", false, "<", "</think>x"},
    {"why\n</think>\nso", true, "why", "so"},
    {"why", true, "why", ""},
    {"a</think>b\n", true, "a", "b\n"},
};

// Every way to cut the answer into pieces of one size gives the same parts.
TEST(Reasoning, SplitsTheSameInPiecesOfAnySize) {
  const ReasoningFormat* format = find_reasoning_format("deepseek-r1");
  ASSERT_NE(format, nullptr);
  for (const Case& c : kCases)
    for (size_t piece = 1; piece <= c.answer.size() + 1; ++piece) {
      ReasoningSplitter splitter(format, c.opened);
      std::string reasoning, content;
      for (size_t at = 0; at < c.answer.size(); at += piece) {
        const auto delta = splitter.push(c.answer.substr(at, piece));
        EXPECT_TRUE(content.empty() || delta.reasoning.empty()) << "reasoning after content: " << c.answer;
        reasoning += delta.reasoning;
        content += delta.content;
      }
      const auto rest = splitter.finish();
      EXPECT_EQ(reasoning + rest.reasoning, c.reasoning) << c.answer << " in pieces of " << piece;
      EXPECT_EQ(content + rest.content, c.content) << c.answer << " in pieces of " << piece;
    }
}

TEST(Reasoning, WithoutFormatEverythingIsContentAtOnce) {
  ReasoningSplitter splitter(nullptr);
  EXPECT_EQ(splitter.push("<think>a").content, "<think>a");
  EXPECT_EQ(find_reasoning_format("unheard_of"), nullptr);
}

TEST(Reasoning, TextIsReleasedAsSoonAsItIsSure) {
  ReasoningSplitter splitter(find_reasoning_format("deepseek_r1"));
  EXPECT_EQ(splitter.push("<think>abc").reasoning, "abc");
  EXPECT_EQ(splitter.push(" def\n").reasoning, " def");
  EXPECT_EQ(splitter.push("</think>x").content, "x");
  EXPECT_EQ(splitter.push(" y").content, " y");
}

}  // namespace
}  // namespace moectl::api
