// Encodes the prompts of tests/text/tokenizer_bench.py when that asks for it. Skipped without it.
#include <gtest/gtest.h>
#include <time.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/text/tokenizer.h"

namespace moectl {
namespace {

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

TEST(TokenizerBench, EncodesWhenAsked) {
  const char* file = std::getenv("MOECTL_TOKENIZER_BENCH");
  const char* dir = std::getenv("MOECTL_TOKENIZER_DIR");
  if (!file || !dir) GTEST_SKIP() << "run tests/text/tokenizer_bench.py, which sets MOECTL_TOKENIZER_BENCH";
  const auto tokenizer = Tokenizer::load(dir);
  const auto prompts = nlohmann::json::parse(std::ifstream(file)).get<std::vector<std::string>>();
  for (std::string line; std::getline(std::cin, line);) {
    const double start = thread_seconds();
    std::vector<std::vector<int32_t>> ids;
    for (const std::string& prompt : prompts) ids.push_back(tokenizer->encode(prompt));
    nlohmann::json answer = {{"seconds", thread_seconds() - start}};
    if (line == "ids") answer["ids"] = ids;
    std::cout << answer << std::endl;
  }
}

}  // namespace
}  // namespace moectl
