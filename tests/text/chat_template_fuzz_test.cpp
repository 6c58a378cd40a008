// Checks the lines that tests/text/chat_template_fuzz.py writes with jinja2. Skipped without them.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/text/chat_template.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

// What the template renders, or the Error's message. A byte that the request brought must never count as template
// text: the request's strings hold the marker, and the templates do not.
Json render(const Json& c, const std::string& marker) {
  ChatTemplateLimits limits;
  limits.max_steps = 100'000'000;  // random templates nest loops
  try {
    std::string output;
    for (const TextSegment& s :
         ChatTemplate::compile(c["source"].get<std::string>(), limits)->render(c["variables"], {"bos_token"})) {
      if (s.trusted && s.text.find(marker) != std::string::npos) return {{"laundered", s.text}};
      output += s.text;
    }
    return {{"output", output}};
  } catch (const Error& e) {
    return {{"error", e.what()}};
  }
}

TEST(ChatTemplateFuzz, AgreesWithJinja2) {
  const char* lines = std::getenv("MOECTL_TEMPLATE_FUZZ");
  if (!lines) GTEST_SKIP() << "run tests/text/chat_template_fuzz.py, which sets MOECTL_TEMPLATE_FUZZ";
  std::ifstream file(lines);
  int num_outputs = 0, num_errors = 0, num_wrong = 0;
  for (std::string line; std::getline(file, line);) {
    const Json c = Json::parse(line);
    const Json got = render(c, "\xC2\xB6");
    const bool same = c.contains("output") ? got.value("output", Json()) == c["output"] : got.contains("error");
    ++(c.contains("output") ? num_outputs : num_errors);
    if (!same && ++num_wrong <= 20)
      ADD_FAILURE() << c.value("name", c["source"].get<std::string>().substr(0, 2000))
                    << "\n  jinja2: " << (c.contains("output") ? c["output"] : c["error"]) << "\n  ours:   " << got;
  }
  EXPECT_EQ(num_wrong, 0) << "of " << num_outputs + num_errors;
  EXPECT_GT(num_outputs, 0);
  std::printf("compared %d outputs and %d errors\n", num_outputs, num_errors);
}

}  // namespace
}  // namespace moectl
