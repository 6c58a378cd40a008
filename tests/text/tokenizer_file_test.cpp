// A tokenizer.json from outside that is malformed, hostile or beyond what we do: Error{kBadData} (kNotFound when there
// is none) with file and field.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/text/tokenizer.h"

namespace moectl {
namespace {

using nlohmann::json;

const std::filesystem::path kDemo = std::filesystem::path(MOECTL_SOURCE_DIR) / "models" / "demo";

class TokenizerFile : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) / fmt::format("moectl_{}_{}", info->name(), getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::shared_ptr<const Tokenizer> load(const std::string& content) {
    std::ofstream(folder_ / "tokenizer.json", std::ios::binary) << content;
    return Tokenizer::load(folder_);
  }
  void expect_refused(const std::string& content, const std::string& field) {
    try {
      load(content);
      ADD_FAILURE() << "accepted; expected an error about " << field;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kBadData) << e.what();
      EXPECT_NE(std::string(e.what()).find("tokenizer.json"), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find(field), std::string::npos) << e.what();
      EXPECT_LT(std::string(e.what()).size(), 2000u);
    }
  }
  // The demo's file with one change.
  void expect_refused(const std::function<void(json&)>& change, const std::string& field) {
    json file = demo_;
    change(file);
    expect_refused(file.dump(), field);
  }
  void expect_pattern_refused(const std::string& pattern, const std::string& reason) {
    expect_refused([&](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern; }, reason);
  }
  std::shared_ptr<const Tokenizer> load_with_pattern(const std::string& pattern) {
    json file = demo_;
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern;
    return load(file.dump());
  }

  const json demo_ = json::parse(std::ifstream(kDemo / "tokenizer.json"));
  std::filesystem::path folder_;
};

TEST_F(TokenizerFile, MissingOrMalformed) {
  try {
    Tokenizer::load(folder_ / "nothing");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kNotFound);
    EXPECT_NE(std::string(e.what()).find("tokenizer.json"), std::string::npos);
  }
  for (const char* text :
       {"", "{", "null", "[]", "12", "\"model\"", "{}", "\xff\xfe", "{\"model\": {\"type\": \"BPE\"}} x"}) {
    expect_refused(text, "");
  }
  const std::string whole = demo_.dump();
  for (size_t size = 1; size < whole.size(); size += whole.size() / 37) expect_refused(whole.substr(0, size), "JSON");
}

TEST_F(TokenizerFile, DeepJsonIsRefusedBeforeItIsParsed) {
  expect_refused("{\"model\": " + std::string(2'000'000, '['), "deeper");
  std::string deep = "{\"type\":\"NFC\"}";
  for (int i = 0; i < 100; ++i) deep = "{\"type\":\"Sequence\",\"normalizers\":[" + deep + "]}";
  expect_refused("{\"normalizer\": " + deep + "}", "deeper");
}

TEST_F(TokenizerFile, BadVocabulary) {
  const auto set = [](const char* token, json id) { return [=](json& f) { f["model"]["vocab"][token] = id; }; };
  expect_refused(set("zzz", 100), "id 100");
  expect_refused(set("zzz", -1), "model.vocab[\"zzz\"]");
  expect_refused(set("zzz", 4000000000u), "model.vocab[\"zzz\"]");
  expect_refused(set("zzz", UINT64_MAX), "model.vocab[\"zzz\"]");
  expect_refused(set("zzz", INT64_MIN), "model.vocab[\"zzz\"]");
  expect_refused(set("zzz", 1.5), "model.vocab[\"zzz\"]");
  expect_refused(set("zzz", "7"), "model.vocab[\"zzz\"]");
  expect_refused(set("zzz", nullptr), "model.vocab[\"zzz\"]");
  expect_refused(set("zzz", json::array({1})), "model.vocab[\"zzz\"]");
  expect_refused(set("", 5000), "empty");
  expect_refused([](json& f) { f["model"]["vocab"].erase("!"); }, "0x21");
  expect_refused([](json& f) { f["model"]["vocab"] = json::array(); }, "model.vocab");
  expect_refused([](json& f) { f["model"].erase("vocab"); }, "vocab");
}

TEST_F(TokenizerFile, BadMerges) {
  const auto add = [](json merge) { return [=](json& f) { f["model"]["merges"].push_back(merge); }; };
  expect_refused(add({"no such token", "a"}), "merges[3833]");
  expect_refused(add({"a", "no such token"}), "merges[3833]");
  expect_refused(add({"!", "\""}), "merges[3833]");  // "!\"" itself is not in the vocabulary
  expect_refused(add({"a"}), "merges[3833]");
  expect_refused(add({"a", "b", "c"}), "merges[3833]");
  expect_refused(add({"a", 1}), "merges[3833]");
  expect_refused(add("i n"), "merges[3833]");  // the two spellings are not mixed
  expect_refused(add(7), "merges[3833]");
  expect_refused([](json& f) { f["model"]["merges"] = {"in"}; }, "merges[0]");
  expect_refused([](json& f) { f["model"]["merges"] = {"i n g"}; }, "merges[0]");
  expect_refused([](json& f) { f["model"]["merges"] = {{"i", "n"}, 3}; }, "merges[1]");
  expect_refused([](json& f) { f["model"]["merges"] = "i n"; }, "model.merges");
  expect_refused([](json& f) { f["model"].erase("merges"); }, "merges");
}

TEST_F(TokenizerFile, MergesInTheOldSpellingAreTheSame) {
  json file = demo_;
  json lines = {"#version: 0.2"};
  for (const json& merge : demo_["model"]["merges"]) {
    lines.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  file["model"]["merges"] = lines;
  const std::string text = "The merges of both spellings give the same tokens.";
  EXPECT_EQ(load(file.dump())->encode(text), Tokenizer::load(kDemo)->encode(text));
}

TEST_F(TokenizerFile, BadAddedTokens) {
  const auto change = [](const char* key, json value) { return [=](json& f) { f["added_tokens"][5][key] = value; }; };
  const auto add = [](json id, json content) {
    return [=](json& f) {
      json token = f["added_tokens"][5];
      token["id"] = id;
      token["content"] = content;
      f["added_tokens"].push_back(token);
    };
  };
  expect_refused(change("id", 7), "added_tokens[5].id");
  expect_refused(change("id", -7), "added_tokens[5].id");
  expect_refused(change("id", 1e300), "added_tokens[5].id");
  expect_refused(change("content", ""), "added_tokens[5]");
  expect_refused(change("content", 3), "added_tokens[5].content");
  for (const char* key : {"special", "normalized", "lstrip", "rstrip", "single_word"}) {
    expect_refused(change(key, "yes"), fmt::format("added_tokens[5].{}", key));
    expect_refused([&](json& f) { f["added_tokens"][5].erase(key); }, key);
  }
  expect_refused(add(5, "<new>"), "added_tokens[7].id");
  expect_refused(add(300, "<new>"), "added_tokens[7].id");
  expect_refused(add(1 << 30, "<new>"), "added_tokens[7].id");
  expect_refused(add(5, "<think>"), "added_tokens[7]");
  expect_refused(add(4097, "<think>"), "added_tokens[7].id");
  expect_refused([](json& f) { f["added_tokens"] = json::object(); }, "added_tokens");
  expect_refused([](json& f) { f["added_tokens"][0] = 1; }, "added_tokens[0]");
}

TEST_F(TokenizerFile, UnsupportedPartsAreNamed) {
  const auto set = [](const char* pointer, json value) {
    return [=](json& f) { f[json::json_pointer(pointer)] = value; };
  };
  expect_refused(set("/model/type", "Unigram"), "Unigram");
  expect_refused(set("/model/type", 3), "model.type");
  expect_refused(set("/model/dropout", 0.5), "model.dropout");
  expect_refused(set("/model/byte_fallback", true), "byte_fallback");
  expect_refused(set("/model/ignore_merges", "no"), "ignore_merges");
  expect_refused(set("/model/unk_token", 1), "unk_token");
  expect_refused(set("/model/continuing_subword_prefix", "##"), "continuing_subword_prefix");
  expect_refused(set("/model", nullptr), "model");
  expect_refused(set("/normalizer", {{"type", "Lowercase"}}), "Lowercase");
  expect_refused(set("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFKC"}}}}}),
                 "normalizer.normalizers[0]");
  expect_refused(set("/normalizer", "NFC"), "normalizer");
  expect_refused(set("/pre_tokenizer", nullptr), "pre_tokenizer");
  expect_refused(set("/pre_tokenizer", {{"type", "Whitespace"}}), "Whitespace");
  expect_refused(set("/pre_tokenizer/pretokenizers", json::array()), "ByteLevel");
  expect_refused(set("/pre_tokenizer/pretokenizers", 4), "pretokenizers");
  expect_refused(set("/pre_tokenizer/pretokenizers/3/add_prefix_space", 4), "add_prefix_space");
  expect_refused([](json& f) { f["pre_tokenizer"]["pretokenizers"].push_back(f["pre_tokenizer"]["pretokenizers"][0]); },
                 "pretokenizers[4]");
  expect_refused(set("/pre_tokenizer/pretokenizers/0/behavior", "Sideways"), "Sideways");
  expect_refused(set("/pre_tokenizer/pretokenizers/0/invert", nullptr), "invert");
  expect_refused(set("/pre_tokenizer/pretokenizers/0/pattern", "x"), "pattern");
  expect_refused(set("/pre_tokenizer/pretokenizers/0/pattern", {{"String", ""}}), "pattern.String");
  expect_refused(set("/pre_tokenizer/pretokenizers/0/pattern", {{"Glob", "*"}}), "pattern");
  expect_refused(set("/decoder", nullptr), "decoder");
  expect_refused(set("/decoder", {{"type", "Metaspace"}}), "Metaspace");
}

TEST_F(TokenizerFile, PatternsThatWouldMatchOtherwiseAreRefused) {
  const std::pair<const char*, const char*> cases[] = {{"", "empty"},
                                                       {"(", "refused"},
                                                       {"a)", "refused"},
                                                       {"[a", "class"},
                                                       {"[]a]", "class"},
                                                       {"[a[bc]]", "class"},
                                                       {"[a&&b]", "intersection"},
                                                       {"[[:alpha:]]", "class"},
                                                       {"[a-\\s]", "range"},
                                                       {"[\\s-z]", "range"},
                                                       {"[^\\P{L}]", "negated"},
                                                       {"\\p{Greek}", "Greek"},
                                                       {"\\pL", "property"},
                                                       {"\\p{L", "property"},
                                                       {"\\w+", "\\w"},
                                                       {"\\h", "\\h"},
                                                       {"\\bx", "\\b"},
                                                       {"\\R", "\\R"},
                                                       {"\\K", "\\K"},
                                                       {"(a)\\1", "\\1"},
                                                       {"(?i)a", "group"},
                                                       {"(?<name>a)", "group"},
                                                       {"(*ACCEPT)", "group"},
                                                       {"(?R)", "group"},
                                                       {"(?{code})", "group"},
                                                       {"a{2}+", "suffix"},
                                                       {"a{2}?", "suffix"},
                                                       {"a{", "brace"},
                                                       {"a{x}", "brace"},
                                                       {"a{3,2}", "brace"},
                                                       {"a{9999999999}", "repetition"},
                                                       {"a**", "repeated"},
                                                       {"*a", "refused"},
                                                       {"\\", "backslash"},
                                                       {"\\xff", "\\x"},
                                                       {"\\x{d800}", "code"},
                                                       {"\\x{110000}", "code"},
                                                       {"\\u12", "code"},
                                                       {"(?<=a+)b", "refused"}};
  for (const auto& [pattern, reason] : cases) expect_pattern_refused(pattern, reason);
  expect_pattern_refused(std::string(100'000, 'a'), "bytes");
  expect_pattern_refused(std::string(6'000, '(') + "a" + std::string(6'000, ')'), "refused");
  expect_pattern_refused("(((((a{1000}){1000}){1000}){1000}){1000})", "refused");
}

TEST_F(TokenizerFile, PathologicalPatternsEndInAnError) {
  const std::string text = std::string(200'000, 'a') + "b";
  for (const char* pattern : {"(a+)+$", "(?:a|a)*c", "(?:a*)*c", "(?:aa|a)+c"}) {
    const auto tokenizer = load_with_pattern(pattern);
    try {
      const auto ids = tokenizer->encode(text);
      EXPECT_EQ(tokenizer->decode(ids, false), text);  // the engine may see that nothing can match
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kInvalidArgument) << e.what();
      EXPECT_NE(std::string(e.what()).find("pretokenizers[0]"), std::string::npos) << e.what();
    }
    EXPECT_FALSE(tokenizer->encode("hello").empty());
  }
  EXPECT_THROW(load_with_pattern("(?:a+)+\\z")->encode(text), Error);
}

}  // namespace
}  // namespace moectl
