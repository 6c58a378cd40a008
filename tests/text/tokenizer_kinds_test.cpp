// Tokenizers that are not byte-level: SentencePiece-type BPE and tiktoken rank files. What they must refuse, and how
// their tokens become text while they stream. Ids are compared with the libraries by tokenizer_fuzz.py.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/text/detokenizer.h"
#include "core/text/tiktoken_chunks.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

class KindsTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ = std::filesystem::path(testing::TempDir()) / fmt::format("moectl_kinds_{}_{}", info->name(), getpid());
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  void write(const std::string& name, const std::string& content) {
    std::ofstream(dir_ / name, std::ios::binary) << content;
  }
  std::string load_error() {
    try {
      Tokenizer::load(dir_);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), std::filesystem::is_empty(dir_) ? Code::kNotFound : Code::kBadData) << e.what();
      EXPECT_LT(std::string(e.what()).size(), 2000u);
      return e.what();
    }
    return "(loaded)";
  }
  void expect_error(const std::string& part) {
    const std::string error = load_error();
    EXPECT_NE(error.find(part), std::string::npos) << "expected " << part << " in: " << error;
  }

  std::filesystem::path dir_;
};

TEST_F(KindsTest, FilesThatAreNotReadAreNamed) {
  expect_error("there is no tokenizer.json");
  for (const char* name : {"vocab.json", "tekken.json", "tokenizer.model"}) {
    write(name, "x");
    expect_error(std::string(name) + ": is not read; a tokenizer.json is needed beside it");
  }
}

// ---------------------------------------------------------------------------------------------- SentencePiece

const std::string kSpace = "\u2581";

json sentencepiece() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int b = 0; b < 256; ++b) vocab[fmt::format("<0x{:02X}>", b)] = 3 + b;
  json merges = json::array();
  const auto add = [&](const std::string& token) {
    if (!vocab.contains(token)) vocab[token] = vocab.size();
  };
  for (const char* token : {"\u2581", "a", "b", "c", "\u00e9"}) add(token);
  const std::pair<std::string, std::string> pairs[] = {
      {kSpace, "a"}, {"b", "c"}, {kSpace + "a", "bc"}, {kSpace, kSpace}};
  for (const auto& [left, right] : pairs) {
    add(left + right);
    merges.push_back({left, right});
  }
  json added = json::array();
  for (const auto& [content, id] : {std::pair("<unk>", 0), std::pair("<s>", 1), std::pair("</s>", 2)}) {
    added.push_back({{"id", id},
                     {"content", content},
                     {"special", true},
                     {"normalized", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"single_word", false}});
  }
  const json replace_back = {{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}};
  const json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Metaspace"}, {"replacement", kSpace}, {"prepend_scheme", "first"}, {"split", false}}},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
            {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}}},
          {"decoder",
           {{"type", "Sequence"}, {"decoders", {replace_back, {{"type", "ByteFallback"}}, {{"type", "Fuse"}}, strip}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", merges}}}};
}

class SentencePieceTest : public KindsTest {
 protected:
  std::shared_ptr<const Tokenizer> load(const json& file) {
    write("tokenizer.json", file.dump());
    return Tokenizer::load(dir_);
  }
  void expect_refused(const std::string& pointer, const json& value, const std::string& part) {
    json file = sentencepiece();
    file[json::json_pointer(pointer)] = value;
    write("tokenizer.json", file.dump());
    expect_error(part);
  }
  static int32_t byte(int b) { return 3 + b; }
};

std::vector<std::string> chunks_of(const std::shared_ptr<const Tokenizer>& tokenizer, const Ids& ids,
                                   Detokenizer::Options options = {}) {
  Detokenizer detokenizer(tokenizer, std::move(options));
  std::vector<std::string> chunks;
  for (const int32_t id : ids) chunks.push_back(detokenizer.push(id));
  chunks.push_back(detokenizer.finish());
  for (const std::string& chunk : chunks) EXPECT_TRUE(is_valid_utf8(chunk));
  return chunks;
}

TEST_F(SentencePieceTest, TokensBecomeText) {
  const auto tokenizer = load(sentencepiece());
  const int32_t a = *tokenizer->token_id("a"), space_a = *tokenizer->token_id(kSpace + "a");
  EXPECT_EQ(tokenizer->token_bytes(space_a), " a");
  EXPECT_EQ(tokenizer->token_bytes(byte(0xe4)), "\xe4");
  EXPECT_EQ(tokenizer->special_tokens().before, Ids{1});
  using Chunks = std::vector<std::string>;
  // The space at the start of the text vanishes, that of a later token stays; a continued text keeps both.
  EXPECT_EQ(chunks_of(tokenizer, {space_a, space_a}), (Chunks{"a", " a", ""}));
  EXPECT_EQ(chunks_of(tokenizer, {1, space_a, space_a}), (Chunks{"", "a", " a", ""}));
  EXPECT_EQ(chunks_of(tokenizer, {space_a, space_a}, {.continues_text = true}), (Chunks{" a", " a", ""}));
  // The bytes of a character come as one, when their run is over.
  const Ids character = {a, byte(0xe4), byte(0xbd), byte(0xa0), a};
  EXPECT_EQ(chunks_of(tokenizer, character), (Chunks{"a", "", "", "",
                                                     "\u4f60"
                                                     "a",
                                                     ""}));
  // A run that is not UTF-8 as a whole: one U+FFFD for each of its bytes, as the library has it.
  EXPECT_EQ(chunks_of(tokenizer, {byte(0xe4), byte(0xbd), byte(0xa0), byte(0xe4)}),
            (Chunks{"", "", "", "", "\ufffd\ufffd\ufffd\ufffd"}));
  EXPECT_EQ(chunks_of(tokenizer, {byte(0xe4), 2, -1, byte(0xbd), 100'000, byte(0xa0)}).back(), "\u4f60");
  EXPECT_EQ(chunks_of(tokenizer, {a, byte('b'), byte('c'), a}, {.stop = {"bc"}}), (Chunks{"a", "", "", "", ""}));
}

TEST_F(SentencePieceTest, UntrustedTextHasNoControlTokens) {
  json file = sentencepiece();
  file["added_tokens"].push_back({{"id", file["model"]["vocab"]["b"]},
                                  {"content", "b"},
                                  {"special", true},
                                  {"normalized", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"single_word", false}});
  const auto tokenizer = load(file);
  const std::vector<TextSegment> segments = {{"b<s>", false}, {"b<s>", true}};
  const Ids ids = tokenizer->encode(segments);
  const int32_t b = *tokenizer->token_id("b");
  ASSERT_GE(ids.size(), 2u);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), b), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 1);
  EXPECT_EQ(ids[ids.size() - 2], b);
}

TEST_F(SentencePieceTest, LongTextsAreNotQuadratic) {
  const auto tokenizer = load(sentencepiece());
  for (const std::string unit : {"a", " ", "bc", " abc", "\u4f60", "\u00e9 "}) {
    std::string text;
    while (text.size() < 400'000) text += unit;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text), false), text.starts_with(' ') ? text.substr(1) : text) << unit;
  }
}

TEST_F(SentencePieceTest, WhatIsNotUnderstoodIsRefusedByName) {
  expect_refused("/model/byte_level", true, "byte_level");
  expect_refused("/something", 1, "something");
  expect_refused("/added_tokens/0/bytes", 1, "bytes");
  expect_refused("/model/unk_token", "<none>", "model.unk_token");
  expect_refused("/model/end_of_word_suffix", "</w>", "end_of_word_suffix");
  expect_refused("/normalizer", {{"type", "Prepend"}}, "normalizer");
  expect_refused("/normalizer", {{"type", "Prepend"}, {"prepend", std::string(10'000, 'x')}}, "normalizer.prepend");
  expect_refused("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", " +"}}}, {"content", "x"}},
                 "normalizer.pattern");
  expect_refused("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}},
                 "pattern.String");
  expect_refused("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", ""}}, "Precompiled");
  expect_refused("/pre_tokenizer/prepend_scheme", "sometimes", "prepend_scheme");
  expect_refused("/pre_tokenizer/replacement", "__", "replacement");
  expect_refused("/pre_tokenizer/replacement", "", "replacement");
  expect_refused("/pre_tokenizer/other", 1, "other");
  const json metaspace = sentencepiece()["pre_tokenizer"];
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  expect_refused("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {metaspace, metaspace}}},
                 "pretokenizers[1]");
  expect_refused("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {metaspace, byte_level}}},
                 "pretokenizers[1]");
  expect_refused("/pre_tokenizer", byte_level, "decoder");
  expect_refused("/decoder", byte_level, "decoder");
  expect_refused("/decoder", nullptr, "decoder");
  expect_refused("/decoder/decoders/3/content", "x", "decoders[3]");
  expect_refused("/decoder/decoders/3/stop", 1, "decoders[3]");
  expect_refused("/decoder/decoders/3/start", -1, "start");
  expect_refused("/decoder/decoders/2", {{"type", "ByteFallback"}}, "in this order");
  expect_refused("/decoder/decoders/1", {{"type", "CTC"}}, "CTC");
  expect_refused("/post_processor", {{"type", "BertProcessing"}}, "BertProcessing");
  expect_refused("/post_processor/single/0/SpecialToken/id", "<none>", "<none>");
  expect_refused("/post_processor/special_tokens/<s>/ids/0", 100'000, "ids");
  expect_refused("/post_processor/single/1/Sequence/id", "B", "single[1]");
  expect_refused("/post_processor/single/1", {{"SpecialToken", {{"id", "<s>"}}}}, "does not hold the text");
  json steps = json::array();
  for (int i = 0; i < 1000; ++i) steps.push_back({{"type", "Prepend"}, {"prepend", "x"}});
  expect_refused("/normalizer", {{"type", "Sequence"}, {"normalizers", steps}}, "one step too many");
  json file = sentencepiece();
  file["model"]["vocab"].erase("<0x41>");
  write("tokenizer.json", file.dump());
  expect_error("<0x41>");
}

// ---------------------------------------------------------------------------------------------- rank files

std::string base64(const std::string& bytes) {
  static const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) group = group << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j)
      out += j <= std::min<size_t>(bytes.size() - i, 3) ? alphabet[group >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

class RankFileTest : public KindsTest {
 protected:
  void SetUp() override {
    KindsTest::SetUp();
    for (int b = 0; b < 256; ++b) lines_ += base64(std::string(1, static_cast<char>(b))) + fmt::format(" {}\n", b);
    lines_ += base64("ab") + " 256\n" + base64("abc") + " 257\n";
  }
  void write_files(const std::string& ranks,
                   const json& named = {{"258", {{"content", "[BOS]"}, {"special", true}}},
                                        {"260", {{"content", "<tool>"}, {"special", false}}}}) {
    write("tiktoken.model", ranks);
    write("tokenizer_config.json", json{{"added_tokens_decoder", named}}.dump());
  }
  std::string lines_;
};

TEST_F(RankFileTest, BaseTokensThenNamedAndReservedOnes) {
  write_files(lines_);
  const auto tokenizer = Tokenizer::load(dir_);
  EXPECT_EQ(tokenizer->vocab_size(), 258 + 258);
  EXPECT_EQ(tokenizer->encode("abc[BOS]ab<tool>x"), (Ids{257, 258, 256, 260, 'x'}));
  EXPECT_EQ(tokenizer->encode("<|reserved_token_259|>"), Ids{259});
  EXPECT_TRUE(tokenizer->is_special(258));
  EXPECT_FALSE(tokenizer->is_special(260));
  EXPECT_EQ(tokenizer->decode(Ids{258, 257, 260}, true), "abc<tool>");
  const std::vector<TextSegment> untrusted = {{"[BOS]", false}};
  EXPECT_EQ(tokenizer->encode(untrusted), (Ids{'[', 'B', 'O', 'S', ']'}));
}

TEST_F(RankFileTest, HunyuanNumbersTokensByTheirPlace) {
  // A repeated token is skipped, whatever its rank says.
  write("hy.tiktoken", lines_ + base64("ab") + " 258\n" + base64("bc") + " 259\n");
  const auto tokenizer = Tokenizer::load(dir_);
  EXPECT_EQ(tokenizer->token_id("<|endoftext|>"), 259);
  EXPECT_EQ(tokenizer->token_id("<|extra_204|>"), 259 + 209);
  EXPECT_EQ(tokenizer->encode("bc<|eos|>"), (Ids{258, 262}));
}

TEST_F(RankFileTest, HostileFilesAreRefusedWithTheLine) {
  const std::pair<std::string, std::string> bad[] = {{"YW 258\n", "line 259"},
                                                     {"Y!== 258\n", "line 259"},
                                                     {"YWI 258\n", "line 259"},
                                                     {"=AAA 258\n", "line 259"},
                                                     {" 258\n", "line 259"},
                                                     {"eHg=\n", "line 259"},
                                                     {"eHg= \n", "line 259"},
                                                     {"eHg= -1\n", "line 259"},
                                                     {"eHg= 1e3\n", "line 259"},
                                                     {"eHg= 2097152\n", "line 259"},
                                                     {"eHg= 99999999999999999999999\n", "line 259"},
                                                     {"eHg= 258 1\n", "line 259"},
                                                     {"eHg= 257\n", "rank 257"},
                                                     {"YWI= 258\n", "token of line 257 once more"},
                                                     {"eHg= 300\n", "expected every rank from 0 on"},
                                                     {"eHg= 2097151\n", "expected every rank from 0 on"},
                                                     {base64(std::string(5000, 'x')) + " 258\n", "5000 bytes"}};
  for (const auto& [line, part] : bad) {
    write_files(lines_ + line);
    expect_error("tiktoken.model");
    expect_error(part);
  }
  write_files("");
  expect_error("has no tokens");
  write_files(base64("xyz") + " 0\n" + lines_.substr(lines_.find('\n') + 1));
  expect_error("byte 0x00");
  write_files(lines_.substr(lines_.find('\n') + 1));
  expect_error("expected every rank from 0 on");
  write_files(std::string((8 << 20) + 1, '\n'));
  expect_error("expected at most");
}

TEST_F(RankFileTest, SpecialTokensThatCannotBeAreRefused) {
  write("tiktoken.model", lines_);
  expect_error("tokenizer_config.json");
  write("tokenizer_config.json", "{}");
  expect_error("added_tokens_decoder");
  const auto named = [](const std::string& id, json entry) { return json{{id, std::move(entry)}}; };
  const std::pair<json, std::string> bad[] = {
      {named("257", {{"content", "x"}}), "\"257\""},
      {named("516", {{"content", "x"}}), "\"516\""},
      {named("-1", {{"content", "x"}}), "\"-1\""},
      {named("99999999999999999999", {{"content", "x"}}), "99999999999999999999"},
      {named("258", {{"content", ""}}), "empty"},
      {named("258", {{"content", 3}}), "content"},
      {named("258", 3), "258"},
      {named("258", {{"content", "x"}, {"lstrip", true}}), "lstrip"},
      {{{"258", {{"content", "x"}}}, {"259", {{"content", "x"}}}}, "token 258 already"}};
  for (const auto& [entries, part] : bad) {
    write_files(lines_, entries);
    expect_error(part);
  }
}

TEST(TiktokenChunks, CutsLongRuns) {
  const auto sizes = [](const std::string& text) {
    std::vector<size_t> sizes;
    std::string joined;
    for (const std::string_view chunk : tiktoken_chunks(text)) {
      sizes.push_back(chunk.size());
      joined += chunk;
    }
    EXPECT_EQ(joined, text);
    return sizes;
  };
  using Sizes = std::vector<size_t>;
  const auto a = [](size_t n) { return std::string(n, 'a'); };
  EXPECT_EQ(sizes(""), Sizes{});
  EXPECT_EQ(sizes(a(25'000)), Sizes{25'000});
  EXPECT_EQ(sizes(a(25'001)), (Sizes{25'000, 1}));
  EXPECT_EQ(sizes(a(20'000) + " " + a(20'000)), Sizes{40'001});
  EXPECT_EQ(sizes("b " + a(60'000)), (Sizes{25'002, 25'000, 10'000}));
  EXPECT_EQ(sizes(std::string(25'001, '\x1f') + "a"), (Sizes{25'000, 2}));  // white space for Python
  std::string words;
  for (int i = 0; i < 250'000; ++i) words += "a ";
  EXPECT_EQ(sizes(words), (Sizes{400'000, 100'000}));
}

}  // namespace
}  // namespace moectl
