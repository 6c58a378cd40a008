#include "core/text/tiktoken_chunks.h"

#include "core/text/utf8.h"

namespace moectl {
namespace {

constexpr size_t kMaxChars = 400'000, kMaxRun = 25'000;

bool python_isspace(char32_t c) {
  return is_white_space(c) || (c >= 0x1c && c <= 0x1f);
}

}  // namespace

std::vector<std::string_view> tiktoken_chunks(std::string_view text) {
  if (text.empty()) return {};
  if (text.size() <= kMaxRun) return {text};
  std::vector<std::string_view> chunks;
  size_t begin = 0, num_chars = 0, run = 0;  // of the chunk; characters since the last cut at kMaxChars; of one kind
  bool run_is_space = false;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const bool is_space = python_isspace(next_code_point(text, pos));
    const bool same = run > 0 && is_space == run_is_space;
    const bool full = num_chars == kMaxChars;
    if (full || (same && run == kMaxRun)) {
      chunks.push_back(text.substr(begin, at - begin));
      begin = at;
      run = 1;
    } else {
      run = same ? run + 1 : 1;
    }
    num_chars = full ? 1 : num_chars + 1;
    run_is_space = is_space;
  }
  chunks.push_back(text.substr(begin));
  return chunks;
}

}  // namespace moectl
