// Checks the lines that tests/text/tokenizer_fuzz.py writes with the `tokenizers` library. Skipped without them.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/text/detokenizer.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

using nlohmann::json;

// The text of a stream of tokens; every piece must be whole characters.
std::string streamed(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  Detokenizer detokenizer(std::move(tokenizer), {.skip_special = skip_special});
  std::string text;
  const auto add = [&](const std::string& piece) {
    EXPECT_TRUE(is_valid_utf8(piece));
    text += piece;
  };
  for (const int32_t id : ids) add(detokenizer.push(id));
  add(detokenizer.finish());
  return text;
}

std::vector<int32_t> with_special_tokens(const Tokenizer& tokenizer, std::vector<int32_t> ids) {
  const auto& [before, after] = tokenizer.special_tokens();
  ids.insert(ids.begin(), before.begin(), before.end());
  ids.insert(ids.end(), after.begin(), after.end());
  return ids;
}

TEST(TokenizerFuzz, AgreesWithTheLibrary) {
  const char* lines = std::getenv("MOECTL_TOKENIZER_FUZZ");
  const char* dir = std::getenv("MOECTL_TOKENIZER_DIR");
  if (!lines || !dir) GTEST_SKIP() << "run tests/text/tokenizer_fuzz.py, which sets MOECTL_TOKENIZER_FUZZ";
  const auto tokenizer = Tokenizer::load(dir);
  std::ifstream file(lines);
  int num_cases = 0, num_wrong = 0;
  for (std::string line; std::getline(file, line); ++num_cases) {
    const json c = json::parse(line);
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    const auto decode_ids = c["decode_ids"].get<std::vector<int32_t>>();
    const std::vector<TextSegment> whole = {{text, true}};
    const auto got = tokenizer->encode(text);
    const auto ids_special = c["ids_special"].get<std::vector<int32_t>>();
    const auto decoded = c["decoded"].get<std::string>();
    const auto decoded_skip_special = c["decoded_skip_special"].get<std::string>();
    if (got != ids || tokenizer->encode(whole) != ids || with_special_tokens(*tokenizer, got) != ids_special ||
        tokenizer->decode(decode_ids, false) != decoded ||
        tokenizer->decode(decode_ids, true) != decoded_skip_special ||
        streamed(tokenizer, decode_ids, false) != decoded ||
        streamed(tokenizer, decode_ids, true) != decoded_skip_special) {
      if (++num_wrong <= 3) {
        ADD_FAILURE() << line << "\n  got " << json(got) << " " << json(tokenizer->decode(decode_ids, false)) << " "
                      << json(tokenizer->decode(decode_ids, true));
      }
    }
  }
  EXPECT_EQ(num_wrong, 0) << "of " << num_cases;
  EXPECT_GT(num_cases, 0);
  std::printf("compared %d texts\n", num_cases);
}

}  // namespace
}  // namespace moectl
