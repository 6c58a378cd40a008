#include "core/base/json_depth.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace moectl {
namespace {

std::string nested(int depth, const char* open, const char* close) {
  std::string text;
  for (int i = 0; i < depth; ++i) text += open;
  for (int i = 0; i < depth; ++i) text += close;
  return text;
}

TEST(JsonDepth, AcceptsUpToTheLimitAndRefusesOneMore) {
  EXPECT_NO_THROW(check_json_depth(nested(64, "[", "]"), 64, "a.json"));
  EXPECT_THROW(check_json_depth(nested(65, "[", "]"), 64, "a.json"), Error);
  EXPECT_NO_THROW(check_json_depth(nested(63, "{\"a\":", "}"), 64, "a.json"));
  EXPECT_THROW(check_json_depth(nested(32, "[{\"a\":", "}]") + nested(65, "[", "]"), 64, "a.json"), Error);
}

TEST(JsonDepth, ClosedLevelsDoNotCount) {
  std::string text = "[";
  for (int i = 0; i < 1000; ++i) text += "[],{},";
  EXPECT_NO_THROW(check_json_depth(text + "0]", 2, "a.json"));
}

TEST(JsonDepth, BracketsInStringsDoNotCount) {
  EXPECT_NO_THROW(check_json_depth(R"(["[[[[[[", "\"[[[[", "\\"])", 1, "a.json"));
  EXPECT_THROW(check_json_depth(R"(["\\", [[0]]])", 2, "a.json"), Error);
}

TEST(JsonDepth, NamesOriginAndCode) {
  try {
    check_json_depth(std::string(1000000, '['), 64, "dir/config.json");
    FAIL() << "a million brackets were accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadData);
    EXPECT_NE(std::string(e.what()).find("dir/config.json"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("byte 64"), std::string::npos) << e.what();
  }
}

TEST(JsonDepth, UnfinishedTextIsLeftToTheParser) {
  for (const char* text : {"", "\"abc", "\"abc\\", "]]]]", "}[", "not json"}) {
    EXPECT_NO_THROW(check_json_depth(text, 1, "a.json")) << text;
  }
}

}  // namespace
}  // namespace moectl
