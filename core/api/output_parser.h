// What one answer's text becomes: reasoning, content and tool calls, by the formats that the checkpoint uses and the
// request asked for. Puts the machines of reasoning.h, tool_parser.h and harmony.h behind one another. One object an
// answer; one thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/harmony.h"
#include "core/api/output_formats.h"
#include "core/api/reasoning.h"
#include "core/api/tool_parser.h"

namespace moectl::api {

struct OutputDelta {
  std::string reasoning, content;
  std::vector<ToolCallDelta> tool_calls;
};

class OutputParser {
 public:
  struct Options {
    const ReasoningFormat* reasoning = nullptr;  // nullptr: not split off
    const ToolFormat* tools = nullptr;           // nullptr: calls are content
    ToolsJson tool_schemas;
    bool reasoning_opened = false;  // by the end of the prompt
    bool one_call = false;          // parallel_tool_calls: false; later calls are dropped
  };
  explicit OutputParser(const Options& options);

  OutputDelta push(std::string_view text);
  // A marker that came as one special token, whose text the detokenizer left out.
  OutputDelta mark(std::string_view marker);
  OutputDelta finish();
  bool in_reasoning() const { return harmony_ ? harmony_->in_reasoning() : splitter_.in_reasoning(); }

  // Then all of HarmonyParser::markers() must come by mark().
  bool is_harmony() const { return harmony_.has_value(); }

 private:
  void add(ReasoningSplitter::Delta&& parts, bool final, OutputDelta& delta);
  void add(HarmonyParser::Delta&& parts, OutputDelta& delta);
  void add_call(ToolCallDelta&& call, OutputDelta& delta);

  const bool one_call_;
  ReasoningSplitter splitter_;
  std::optional<ToolCallParser> calls_;
  std::optional<HarmonyParser> harmony_;
};

}  // namespace moectl::api
