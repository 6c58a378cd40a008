#include "core/api/output_formats.h"

#include <algorithm>
#include <cctype>

namespace moectl::api {
namespace {

// The first row whose hints stand in the template and whose markers are in the tokenizer is chosen for `auto`, so rows
// with more hints come first.
constexpr ReasoningFormat kReasoning[] = {
    {.name = "gpt_oss", .aliases = "openai_gptoss gptoss harmony openai", .hints = "<|channel|> <|message|>"},
    {.name = "kimi_k2",
     .aliases = "kimi_k2_thinking",
     .hints = "<think> <|tool_calls_section_begin|>",
     .open = "<think>",
     .close = "</think>",
     .ends_at = "<|tool_calls_section_begin|>"},
    {.name = "minimax_m2",
     .aliases = "minimax",
     .hints = "<minimax:tool_call>",
     .open = "<think>",
     .close = "</think>",
     .ends_at = "<minimax:tool_call>"},
    {.name = "ernie45",
     .aliases = "ernie_4_5",
     .hints = "<think> <response>",
     .open = "<think>",
     .close = "</think>",
     .ends_at = "<tool_call>",
     .answer_open = "<response>",
     .answer_close = "</response>",
     .spelled = true},
    {.name = "hunyuan_a13b",
     .aliases = "hunyuan hunyuan_v1_moe",
     .hints = "<think> <answer>",
     .open = "<think>",
     .close = "</think>",
     .ends_at = "<tool_calls>",
     .answer_open = "<answer>",
     .answer_close = "</answer>",
     .spelled = true},
    {.name = "seed_oss",
     .hints = "<seed:think>",
     .open = "<seed:think>",
     .close = "</seed:think>",
     .ends_at = "<seed:tool_call>"},
    {.name = "mistral", .hints = "[THINK]", .open = "[THINK]", .close = "[/THINK]"},
    {.name = "glm45",
     .aliases = "glm4_moe glm47",
     .hints = "<think> <arg_key>",
     .open = "<think>",
     .close = "</think>",
     .ends_at = "<tool_call>"},
    {.name = "qwen3",
     .aliases = "qwen3_thinking qwen",
     .hints = "<think> <tool_call>",
     .open = "<think>",
     .close = "</think>",
     .ends_at = "<tool_call>"},
    {.name = "deepseek_r1", .aliases = "deepseek_v3 deepseek_v31 step3", .open = "<think>", .close = "</think>"},
};

constexpr ToolFormat kTools[] = {
    {.name = "harmony",
     .aliases = "openai gpt_oss gptoss openai_gptoss",
     .hints = "<|channel|> <|message|>",
     .style = CallStyle::kHarmony},
    {.name = "deepseek_v3",
     .aliases = "deepseek_r1",
     .hints = "<｜tool▁calls▁begin｜> ```json",
     .style = CallStyle::kNamed,
     .section_begin = "<｜tool▁calls▁begin｜>",
     .section_end = "<｜tool▁calls▁end｜>",
     .call_begin = "<｜tool▁call▁begin｜>",
     .call_end = "<｜tool▁call▁end｜>",
     .kind_end = "<｜tool▁sep｜>",
     .name_end = "\n",
     .args_open = "```json\n",
     .args_close = "\n```"},
    {.name = "deepseek_v31",
     .hints = "<｜tool▁calls▁begin｜>",
     .style = CallStyle::kNamed,
     .section_begin = "<｜tool▁calls▁begin｜>",
     .section_end = "<｜tool▁calls▁end｜>",
     .call_begin = "<｜tool▁call▁begin｜>",
     .call_end = "<｜tool▁call▁end｜>",
     .name_end = "<｜tool▁sep｜>"},
    {.name = "kimi_k2",
     .aliases = "kimi",
     .hints = "<|tool_call_begin|>",
     .style = CallStyle::kNamed,
     .id = CallId::kFromModel,
     .section_begin = "<|tool_calls_section_begin|>",
     .section_end = "<|tool_calls_section_end|>",
     .call_begin = "<|tool_call_begin|>",
     .call_end = "<|tool_call_end|>",
     .name_end = "<|tool_call_argument_begin|>"},
    {.name = "minimax_m2",
     .aliases = "minimax",
     .hints = "<minimax:tool_call> <invoke",
     .style = CallStyle::kTagged,
     .section_begin = "<minimax:tool_call>",
     .section_end = "</minimax:tool_call>",
     .call_begin = "<invoke name=\"",
     .call_end = "</invoke>",
     .name_end = "\">",
     .key_open = "<parameter name=\"",
     .key_close = "\">",
     .value_close = "</parameter>",
     .trim_line_breaks = true},
    {.name = "seed_oss",
     .hints = "<seed:tool_call> <function=",
     .style = CallStyle::kTagged,
     .section_begin = "<seed:tool_call>",
     .section_end = "</seed:tool_call>",
     .call_begin = "<function=",
     .call_end = "</function>",
     .name_end = ">",
     .key_open = "<parameter=",
     .key_close = ">",
     .value_close = "</parameter>",
     .trim_line_breaks = true},
    {.name = "qwen3_coder",
     .aliases = "qwen3_xml qwen35 mimo",
     .hints = "<tool_call> <function= <parameter=",
     .style = CallStyle::kTagged,
     .section_begin = "<tool_call>",
     .section_end = "</tool_call>",
     .call_begin = "<function=",
     .call_end = "</function>",
     .name_end = ">",
     .key_open = "<parameter=",
     .key_close = ">",
     .value_close = "</parameter>",
     .trim_line_breaks = true},
    {.name = "glm45",
     .aliases = "glm4_moe glm47",
     .hints = "<tool_call> <arg_key>",
     .style = CallStyle::kTagged,
     .call_begin = "<tool_call>",
     .call_end = "</tool_call>",
     .name_end = "\n",
     .name_stop = "<arg_key>",
     .key_open = "<arg_key>",
     .key_close = "</arg_key>",
     .value_open = "<arg_value>",
     .value_close = "</arg_value>",
     .untyped_is_json = true},
    {.name = "hunyuan_a13b",
     .aliases = "hunyuan hunyuan_v1_moe",
     .hints = "<tool_calls>",
     .call_begin = "<tool_calls>",
     .call_end = "</tool_calls>"},
    {.name = "longcat",
     .hints = "<longcat_tool_call>",
     .call_begin = "<longcat_tool_call>",
     .call_end = "</longcat_tool_call>"},
    {.name = "hermes",
     .aliases = "qwen3 qwen25 qwen2_5 qwen ernie45 ernie_4_5",
     .hints = "<tool_call>",
     .call_begin = "<tool_call>",
     .call_end = "</tool_call>"},
    {.name = "mistral",
     .hints = "[TOOL_CALLS]",
     .style = CallStyle::kNamed,
     .id = CallId::kShort,
     .call_begin = "[TOOL_CALLS]",
     .name_end = "[ARGS]",
     .name_stop = "{"},
};

std::vector<std::string_view> words_of(std::string_view text, std::string_view first = {}) {
  std::vector<std::string_view> words;
  if (!first.empty()) words.push_back(first);
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    words.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

template <class Row>
const Row* find_row(std::span<const Row> rows, std::string_view name) {
  std::string key(name);
  for (char& c : key) c = c == '-' ? '_' : char(std::tolower(static_cast<unsigned char>(c)));
  for (const Row& row : rows)
    for (const std::string_view alias : words_of(row.aliases, row.name))
      if (alias == key) return &row;
  return nullptr;
}

template <class Row>
std::string row_names(std::span<const Row> rows) {
  std::string names;
  for (const Row& row : rows) names.append(names.empty() ? "" : ", ").append(row.name);
  return names;
}

std::vector<std::string_view> without_empty(std::vector<std::string_view> markers) {
  std::erase_if(markers, [](std::string_view marker) { return marker.empty(); });
  return markers;
}

}  // namespace

std::span<const ReasoningFormat> reasoning_formats() {
  return kReasoning;
}
std::span<const ToolFormat> tool_formats() {
  return kTools;
}

const ReasoningFormat* find_reasoning_format(std::string_view name) {
  return find_row(reasoning_formats(), name);
}
const ToolFormat* find_tool_format(std::string_view name) {
  return find_row(tool_formats(), name);
}

std::string reasoning_format_names() {
  return row_names(reasoning_formats());
}
std::string tool_format_names() {
  return row_names(tool_formats());
}

std::vector<std::string_view> aliases_of(std::string_view aliases) {
  return words_of(aliases);
}

bool fits_template(std::string_view hints, std::string_view chat_template) {
  const std::vector<std::string_view> words = words_of(hints);
  return std::all_of(words.begin(), words.end(),
                     [&](std::string_view hint) { return chat_template.find(hint) != std::string_view::npos; });
}

const ToolFormat* detect_tool_format(std::string_view chat_template) {
  for (const ToolFormat& format : kTools)
    if (fits_template(format.hints, chat_template)) return &format;
  return nullptr;
}

std::vector<std::string_view> markers_of(const ReasoningFormat& f) {
  return without_empty({f.open, f.close, f.answer_open, f.answer_close});
}

std::vector<std::string_view> markers_of(const ToolFormat& f) {
  return without_empty({f.section_begin, f.section_end, f.call_begin, f.call_end, f.kind_end, f.name_end, f.name_stop,
                        f.key_open, f.key_close, f.value_open, f.value_close});
}

}  // namespace moectl::api
