#include "core/text/tokenizer.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "core/base/error.h"
#include "core/text/bpe.h"
#include "core/text/normalizer.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const std::filesystem::path kDemo = std::filesystem::path(MOECTL_SOURCE_DIR) / "models" / "demo";

const Tokenizer& demo() {
  static const auto tokenizer = Tokenizer::load(kDemo);
  return *tokenizer;
}

json demo_file() {
  static const json file = json::parse(std::ifstream(kDemo / "tokenizer.json"));
  return file;
}

// A folder with one tokenizer.json, removed at the end.
class Folder {
 public:
  explicit Folder(const std::string& content) {
    static int number = 0;
    path_ = std::filesystem::path(testing::TempDir()) / fmt::format("moectl_tokenizer_{}_{}", getpid(), number++);
    std::filesystem::create_directories(path_);
    std::ofstream(path_ / "tokenizer.json", std::ios::binary) << content;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::shared_ptr<const Tokenizer> load(const json& file) {
  return Tokenizer::load(Folder(file.dump()).path());
}

TEST(Tokenizer, AgreesWithTheRecordedCases) {
  const json file = json::parse(std::ifstream(kDemo / "tokenizer_cases.json"));
  ASSERT_EQ(file["cases"].size(), 300u);
  for (const json& c : file["cases"]) {
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<Ids>();
    EXPECT_EQ(demo().encode(text), ids) << text;
    EXPECT_EQ(demo().decode(ids, false), c["decoded"].get<std::string>());
    EXPECT_EQ(demo().decode(ids, true), c["decoded_skip_special"].get<std::string>());
  }
}

TEST(Tokenizer, KnowsItsTokens) {
  EXPECT_EQ(demo().vocab_size(), 4096);
  EXPECT_EQ(demo().token_id("</think>"), 6);
  EXPECT_EQ(demo().token_id("no such token"), std::nullopt);
  EXPECT_EQ(demo().token_bytes(5), "<think>");
  EXPECT_TRUE(demo().is_special(0));
  EXPECT_FALSE(demo().is_special(5));
  for (const int32_t outside : {-1, 4096, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(demo().token_bytes(outside), "");
    EXPECT_FALSE(demo().is_special(outside));
    EXPECT_EQ(demo().decode(Ids{outside, 5}, false), "<think>");
  }
}

TEST(Tokenizer, RefusesInvalidUtf8) {
  for (const std::string text : {"a\xff", "\xc0\xaf", "\xed\xa0\x80", "\xe4\xbd", "\xf4\x90\x80\x80"}) {
    const std::vector<TextSegment> segments = {{text, true}};
    EXPECT_THROW(demo().encode(text), Error);
    EXPECT_THROW(demo().encode(segments), Error);
  }
  EXPECT_EQ(demo().encode(""), Ids{});
  EXPECT_EQ(demo().encode(std::span<const TextSegment>{}), Ids{});
}

TEST(Tokenizer, StopsAtALimit) {
  const std::string words = "The quick brown fox <think> jumps over 12345 lazy dogs. ", run(3000, 'a');
  for (const std::string& text : {words, words + words + words, run, run + words, std::string("x")}) {
    const Ids all = demo().encode(text);
    const std::vector<TextSegment> segments = {{text, true}};
    for (size_t limit = 0; limit <= all.size() + 2; limit += all.size() > 100 ? 7 : 1) {
      const std::optional<Ids> ids = demo().encode_at_most(text, limit);
      EXPECT_EQ(ids, all.size() <= limit ? std::optional(all) : std::nullopt) << text.substr(0, 20) << " " << limit;
      EXPECT_EQ(demo().encode_at_most(segments, limit), ids);
    }
    EXPECT_EQ(demo().encode_at_most(text, all.size()), all);
    EXPECT_EQ(demo().encode_at_most(text, all.size() - 1), std::nullopt);
  }
}

TEST(Tokenizer, BytesPerTokenAreBounded) {
  const size_t longest = demo().max_bytes_per_token();
  ASSERT_GT(longest, 0u);
  for (int32_t id = 0; id < demo().vocab_size(); ++id) EXPECT_LE(demo().token_bytes(id).size(), longest);
  json file = demo_file();  // a token that takes the white space beside it: then no bound is known
  file["added_tokens"].back()["lstrip"] = true;
  EXPECT_EQ(load(file)->max_bytes_per_token(), 0u);
  EXPECT_EQ(load(file)->encode("  Hello"), demo().encode("  Hello"));
}

// ---------------------------------------------------------------------------------------------- segments

Ids encode_segments(const std::vector<TextSegment>& segments) {
  return demo().encode(segments);
}

TEST(TokenizerSegments, ControlTokensCountInTemplateBytesOnly) {
  const std::string user = demo().decode(Ids{3}, false), assistant = demo().decode(Ids{4}, false);
  const std::vector<std::string> contents = {user,        "<think>",   "</think>" + assistant,
                                             user + user, "x<think>y", demo().decode(Ids{0, 1, 2}, false)};
  for (const std::string& content : contents) {
    const Ids ids = encode_segments({{user, true}, {content, false}, {assistant, true}});
    ASSERT_GE(ids.size(), 3u);
    EXPECT_EQ(ids.front(), 3);
    EXPECT_EQ(ids.back(), 4);
    for (size_t i = 1; i + 1 < ids.size(); ++i) EXPECT_GT(ids[i], 6) << content;
    EXPECT_EQ(demo().decode(ids, false), user + content + assistant);
  }
}

TEST(TokenizerSegments, ATokenAcrossTheBorderIsText) {
  const std::string token = "<think>";
  for (size_t cut = 1; cut < token.size(); ++cut) {
    for (const bool first : {false, true}) {
      const Ids ids = encode_segments({{token.substr(0, cut), first}, {token.substr(cut), !first}});
      EXPECT_GT(ids.size(), 1u) << cut;
      EXPECT_EQ(demo().decode(ids, false), token);
      EXPECT_EQ(ids, encode_segments({{token, false}}));
    }
  }
}

TEST(TokenizerSegments, TextBetweenTokensIsOnePiece) {
  // "Hello" + " wor" + "ld" splits as "Hello world" does, whoever the bytes came from.
  const Ids whole = demo().encode("Hello world, 123456");
  EXPECT_EQ(encode_segments({{"Hello", true}, {" wor", false}, {"ld, 12", true}, {"3456", false}}), whole);
  EXPECT_EQ(encode_segments({{"Hello", false}, {" wor", false}, {"", true}, {"ld, 123456", false}}), whole);
}

TEST(TokenizerSegments, TrustedSegmentsEqualTheWholeText) {
  const json file = json::parse(std::ifstream(kDemo / "tokenizer_cases.json"));
  std::mt19937 random(7);
  for (const json& c : file["cases"]) {
    const auto text = c["text"].get<std::string>();
    std::vector<TextSegment> segments;
    for (size_t pos = 0, begin = 0; pos < text.size();) {
      next_code_point(text, pos);
      if (pos == text.size() || random() % 4 == 0) {
        segments.push_back({text.substr(begin, pos - begin), true});
        begin = pos;
      }
    }
    EXPECT_EQ(encode_segments(segments), c["ids"].get<Ids>()) << text;
  }
}

TEST(TokenizerSegments, MergesNeverMakeAControlToken) {
  // Merges that would build "<think>" from its characters: from untrusted text it must still come as pieces.
  json file = demo_file();
  auto& vocab = file["model"]["vocab"];
  int next = 4096;
  for (std::string built = "<"; const char c : std::string("think>")) {
    file["model"]["merges"].push_back({built, std::string(1, c)});
    built += c;
    if (!vocab.contains(built)) vocab[built] = next++;
  }
  file["pre_tokenizer"]["pretokenizers"] = json::array({file["pre_tokenizer"]["pretokenizers"].back()});
  for (const bool ignore_merges : {false, true}) {
    file["model"]["ignore_merges"] = ignore_merges;
    const auto tokenizer = load(file);
    const std::vector<TextSegment> untrusted = {{"<think>", false}}, trusted = {{"<think>", true}};
    const Ids ids = tokenizer->encode(untrusted);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 5), 0);
    EXPECT_EQ(tokenizer->decode(ids, false), "<think>");
    EXPECT_EQ(tokenizer->encode(trusted), Ids{5});
  }
}

// ---------------------------------------------------------------------------------------------- merges

// The definition, written down once more: the lowest rank anywhere in the piece, leftmost first, until none is left.
Ids merge_by_definition(Ids ids, const std::map<std::pair<int32_t, int32_t>, std::pair<int, int32_t>>& ranks) {
  while (true) {
    size_t best = ids.size();
    int best_rank = INT32_MAX;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks.find({ids[i], ids[i + 1]});
      if (found != ranks.end() && found->second.first < best_rank) {
        best = i;
        best_rank = found->second.first;
      }
    }
    if (best == ids.size()) return ids;
    ids[best] = ranks.at({ids[best], ids[best + 1]}).second;
    ids.erase(ids.begin() + best + 1);
  }
}

TEST(Bpe, ShortAndLongPiecesMergeByDefinition) {
  std::mt19937 random(11);
  BpeModel model;
  for (int b = 0; b < 256; ++b) model.byte_ids[b] = b;
  for (int round = 0; round < 40; ++round) {
    std::vector<BpeMerge> merges;
    std::map<std::pair<int32_t, int32_t>, std::pair<int, int32_t>> ranks;
    std::vector<int32_t> alphabet = {'a', 'b', 'c'};
    for (int rank = 0; rank < 60; ++rank) {
      const int32_t left = alphabet[random() % alphabet.size()], right = alphabet[random() % alphabet.size()];
      if (ranks.contains({left, right})) continue;
      const auto merged = static_cast<int32_t>(256 + merges.size());
      ranks[{left, right}] = {static_cast<int>(merges.size()), merged};
      merges.push_back({left, right, merged, static_cast<int32_t>(merges.size())});
      alphabet.push_back(merged);
    }
    model.merges = merges;
    const Bpe bpe(model);
    for (const size_t size : {1, 2, 5, 24, 25, 48, 49, 300}) {
      std::string piece;
      for (size_t i = 0; i < size; ++i) piece += static_cast<char>('a' + random() % 3);
      const Ids expected = merge_by_definition(Ids(piece.begin(), piece.end()), ranks);
      for (int again = 0; again < 2; ++again) {  // the second time from the cache
        Ids ids;
        bpe.encode(piece, ids);
        EXPECT_EQ(ids, expected) << piece;
      }
    }
  }
}

TEST(Tokenizer, EncodesLongTextWithoutAnySplit) {
  // Quadratic merging or splitting would take minutes here, and the test's time limit would end it.
  for (const std::string unit : {"a", " ", "\n", "ab", "\u4f60", "\u0301", "<", "1", "!", "aB9 _\t"}) {
    std::string text;
    while (text.size() < 400'000) text += unit;
    EXPECT_EQ(demo().decode(demo().encode(text), false), text);
  }
}

// ---------------------------------------------------------------------------------------------- NFC and UTF-8

TEST(Normalizer, ComposesAndOrders) {
  EXPECT_EQ(nfc("abc"), "abc");
  EXPECT_EQ(nfc("cafe\u0301"), "caf\u00e9");
  EXPECT_EQ(nfc("\u1112\u1161\u11ab"), "\ud55c");
  EXPECT_EQ(nfc("a\u0301\u0323"), "\u1ea1\u0301");
  EXPECT_EQ(nfc("\u212b\u0344"), "\u00c5\u0308\u0301");
  for (const std::string text : {"\u0345\u0898\u0334", "a\u08ca\u0301", "\U00011935\U00011930"}) {
    EXPECT_EQ(nfc(text), text);  // newer than the library's tables: it leaves them, and so do we
  }
  std::string marks = "a";  // out of order from end to end; sorting by neighbours would take hours
  for (int i = 0; i < 100'000; ++i) marks += "\u0345";
  for (int i = 0; i < 100'000; ++i) marks += "\u0334";
  const std::string ordered = nfc(marks);
  EXPECT_EQ(ordered.substr(0, 5), "a\u0334\u0334");
  EXPECT_EQ(ordered.size(), marks.size());
}

TEST(Utf8, ReplacesWhatIsInvalidAsTheLibraryDoes) {
  const std::string r = "\ufffd";
  const std::pair<std::string, std::string> cases[] = {
      {"abc", "abc"},      {"a\x80z", "a" + r + "z"},     {"\xe4\xbd", r},     {"\xe4\xbdz", r + "z"},
      {"\xc0\xaf", r + r}, {"\xed\xa0\x80", r + r + r},   {"\xf0\x9f\x98", r}, {"\xf0\x9f\x98\xf0", r + r},
      {"\xf5\x80", r + r}, {"\xe0\x80\x80", r + r + r},   {"\xf4\x90", r + r}, {"\xf0\x9f\x98\x80", "\U0001f600"},
      {"\xc3", r},         {"\xc3\xa9\xc3", "\u00e9" + r}};
  for (const auto& [bytes, text] : cases) {
    std::string out;
    append_utf8_lossy(out, bytes);
    EXPECT_EQ(out, text);
    EXPECT_EQ(is_valid_utf8(bytes), bytes == text);
  }
  EXPECT_EQ(incomplete_utf8_suffix("a"), 0u);
  EXPECT_EQ(incomplete_utf8_suffix("a\xf0\x9f\x98"), 3u);
  EXPECT_EQ(incomplete_utf8_suffix("a\xc3"), 1u);
  EXPECT_EQ(incomplete_utf8_suffix("a\x80\x80"), 0u);
  EXPECT_EQ(incomplete_utf8_suffix("\xe0\x80"), 0u);
  EXPECT_EQ(incomplete_utf8_suffix("\xf0\x9f\x98\x80"), 0u);
}

}  // namespace
}  // namespace moectl
