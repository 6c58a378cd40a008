// How families of models mark reasoning and tool calls in what they write: data, for the machines in reasoning.h,
// tool_parser.h and harmony.h. A new family is a row here; no machine knows a model's name. docs/formats.md shows the
// tables. Immutable, any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moectl::api {

// In both tables: `aliases` are other spellings, separated by blanks (`-` may stand for `_` everywhere); a chat
// template that holds all of `hints`, separated by blanks, belongs to the family.
struct ReasoningFormat {
  std::string_view name, aliases, hints;
  std::string_view open, close;  // "<think>", "</think>"; empty: harmony, whose channels tell
  std::string_view ends_at;      // a tool call's marker that ends reasoning without `close`
  // Some families wrap the answer once more; these markers belong to no text.
  std::string_view answer_open, answer_close;
  bool spelled = false;  // the markers may be ordinary text, not tokens of their own

  bool is_harmony() const { return open.empty(); }
};

// How the body of a call is written.
enum class CallStyle {
  kJson,    // {"name": "f", "arguments": {...}}, or a list of such objects
  kNamed,   // f SEPARATOR {...}
  kTagged,  // f, then each argument between tags
  kHarmony,
};

enum class CallId {
  kRandom,     // call_ and 24 hexadecimal digits
  kShort,      // 9 letters and digits: templates of this family refuse others
  kFromModel,  // what the model wrote before the name ("functions.f:0")
};

struct ToolFormat {
  std::string_view name, aliases, hints;
  CallStyle style = CallStyle::kJson;
  CallId id = CallId::kRandom;
  std::string_view section_begin, section_end;  // around all calls; empty: there is none
  std::string_view call_begin, call_end;        // around one call; an empty end: the JSON says where it ends
  // Styles kNamed and kTagged: call_begin [kind kind_end] name (name_end | before name_stop)
  std::string_view kind_end;
  std::string_view name_end, name_stop;
  std::string_view args_open, args_close;  // kNamed: a fence around the arguments
  // Style kTagged: key_open key key_close [value_open] value value_close
  std::string_view key_open, key_close, value_open, value_close;
  bool untyped_is_json = false;   // values without a schema: JSON if they are, else strings; false: strings
  bool trim_line_breaks = false;  // one line break at each end of a value is layout
};

std::span<const ReasoningFormat> reasoning_formats();
std::span<const ToolFormat> tool_formats();

// The single names of `aliases`.
std::vector<std::string_view> aliases_of(std::string_view aliases);
// By name or alias, `_` or `-`, any case. nullptr: there is no such parser.
const ReasoningFormat* find_reasoning_format(std::string_view name);
const ToolFormat* find_tool_format(std::string_view name);
// "deepseek_r1, qwen3, ...": for messages.
std::string reasoning_format_names();
std::string tool_format_names();
// Whether `chat_template` holds all of a row's hints. A row without hints fits every template.
bool fits_template(std::string_view hints, std::string_view chat_template);
// The first row that fits; nullptr: none, or the template writes no tool calls.
const ToolFormat* detect_tool_format(std::string_view chat_template);

// The markers of a row, without the empty ones.
std::vector<std::string_view> markers_of(const ReasoningFormat& format);
std::vector<std::string_view> markers_of(const ToolFormat& format);

}  // namespace moectl::api
