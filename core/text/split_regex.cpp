#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/text/split_regex.h"

#include <pcre2.h>

#include <algorithm>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/text/pattern_dialect.h"

namespace moectl {
namespace {

// Limits of one attempt to match at one position (match_limit) and of one text. The time only ends what the pattern
// made hopeless: usual patterns take some 20 ns a byte.
constexpr uint32_t kMatchLimit = 1'000'000;
constexpr uint32_t kDepthLimit = 10'000;
constexpr uint32_t kHeapLimitKib = 16 << 10;
constexpr size_t kJitStackBytes = 16 << 20;
constexpr auto kMaxTime = std::chrono::seconds(10);
// Start positions tried between two looks at the clock.
constexpr size_t kWindow = 1024;
constexpr int kMatchesPerClock = 64;

// What a match writes to; one a thread, so that patterns stay immutable.
struct Scratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);

  Scratch() {
    CHECK(data && context && stack, "out of memory for PCRE2's match data");
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_depth_limit(context, kDepthLimit);
    pcre2_set_heap_limit(context, kHeapLimitKib);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Scratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

std::string error_text(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) return fmt::format("error {}", code);
  return reinterpret_cast<const char*>(buffer);
}

size_t next_boundary(std::string_view text, size_t pos) {
  while (pos < text.size() && (static_cast<unsigned char>(text[pos]) & 0xc0) == 0x80) ++pos;
  return pos;
}

}  // namespace

struct SplitRegex::Code {
  pcre2_code* regex = nullptr;
  bool jit = false;

  Code(const std::string& pattern, const std::string& where) {
    const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
        pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
    CHECK(context, "out of memory for PCRE2's compile context");
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    constexpr uint32_t kOptions =
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_USE_OFFSET_LIMIT | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
    int error = 0;
    PCRE2_SIZE offset = 0;
    regex = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), kOptions, &error, &offset,
                          context.get());
    if (!regex) {
      throw Error(moectl::Code::kBadData,
                  fmt::format("{}: the pattern is refused: {} (at byte {} of its PCRE2 form {})", where,
                              error_text(error), offset, pattern.substr(0, 200)));
    }
    jit = pcre2_jit_compile(regex, PCRE2_JIT_COMPLETE) == 0;  // without it (no executable memory) matching is slower
  }
  ~Code() { pcre2_code_free(regex); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  int match(std::string_view text, size_t start, Scratch& scratch) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    return jit ? pcre2_jit_match(regex, subject, text.size(), start, 0, scratch.data, scratch.context)
               : pcre2_match(regex, subject, text.size(), start, PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
  }
};

SplitRegex::SplitRegex(std::string_view pattern, const std::string& where, Engine engine)
    : where_(where), code_(std::make_unique<Code>(translate_pattern(pattern, false, where), where)) {
  const std::string newer = translate_pattern(pattern, true, where);
  newer_code_ = std::make_unique<Code>(newer, where);
  if (engine == Engine::kFastest) matcher_ = SetMatcher::compile(newer);
}
SplitRegex::~SplitRegex() = default;
SplitRegex::SplitRegex(SplitRegex&&) noexcept = default;

void SplitRegex::find_all(std::string_view text, std::vector<TextRange>& matches) const {
  Cursor cursor;
  while (!cursor.done) find_some(text, text.size() + 1, cursor, matches);
}

void SplitRegex::find_some(std::string_view text, size_t max_matches, Cursor& cursor,
                           std::vector<TextRange>& matches) const {
  if (matcher_ && !cursor.with_pcre2) {
    const size_t first = matches.size();
    if (matcher_->find_some(text, max_matches, cursor.sets, matches)) {
      cursor.done = cursor.sets.pos == text.size();
      return;
    }
    cursor.with_pcre2 = true;  // goes on where the other stopped
    cursor.pos = cursor.sets.pos;
    if (matches.size() > first) cursor.last_end = matches.back().end;
  }
  find_some_with_pcre2(text, max_matches, cursor, matches);
}

void SplitRegex::find_some_with_pcre2(std::string_view text, size_t max_matches, Cursor& cursor,
                                      std::vector<TextRange>& matches) const {
  thread_local Scratch scratch;
  if (!cursor.newer_unicode) cursor.newer_unicode = has_newer_unicode(text);
  const Code& code = *cursor.newer_unicode ? *newer_code_ : *code_;
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(scratch.data);
  const size_t full = matches.size() + max_matches;
  int until_clock = kMatchesPerClock;
  size_t &pos = cursor.pos, &last_end = cursor.last_end;
  auto& deadline = cursor.deadline;

  while (pos <= text.size()) {
    if (matches.size() >= full) return;
    const size_t limit = std::min(text.size(), pos + kWindow);
    pcre2_set_offset_limit(scratch.context, limit);
    const int result = code.match(text, pos, scratch);
    if (result == PCRE2_ERROR_NOMATCH) {
      if (limit == text.size()) break;
      pos = next_boundary(text, limit + 1);
      until_clock = 0;
    } else if (result < 0) {
      throw Error(moectl::Code::kInvalidArgument,
                  fmt::format("the text cannot be split by {}: {} near byte {}", where_, error_text(result), pos));
    } else if (found[0] == found[1] && found[1] == last_end) {
      pos = next_boundary(text, pos + 1);
      --until_clock;
    } else {
      matches.push_back({found[0], found[1]});
      pos = last_end = found[1];
      --until_clock;
    }
    if (until_clock > 0) continue;
    until_clock = kMatchesPerClock;
    const auto now = std::chrono::steady_clock::now();
    if (!deadline) deadline = now + kMaxTime;
    if (now > *deadline) {
      throw Error(moectl::Code::kInvalidArgument,
                  fmt::format("the text cannot be split by {}: it takes more than {} s", where_, kMaxTime.count()));
    }
  }
  cursor.done = true;
}

}  // namespace moectl
