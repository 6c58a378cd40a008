#include "core/api/output_parser.h"

#include <utility>

namespace moectl::api {

namespace {
bool needs_harmony(const OutputParser::Options& options) {
  return (options.reasoning && options.reasoning->is_harmony()) ||
         (options.tools && options.tools->style == CallStyle::kHarmony);
}
}  // namespace

OutputParser::OutputParser(const Options& options)
    : one_call_(options.one_call),
      splitter_(needs_harmony(options) ? nullptr : options.reasoning, options.reasoning_opened,
                options.tools != nullptr) {
  if (needs_harmony(options))
    harmony_.emplace(options.reasoning != nullptr, options.tools != nullptr);
  else if (options.tools)
    calls_.emplace(*options.tools, options.tool_schemas);
}

OutputDelta OutputParser::push(std::string_view text) {
  OutputDelta delta;
  if (harmony_)
    add(harmony_->push(text), delta);
  else
    add(splitter_.push(text), false, delta);
  return delta;
}

OutputDelta OutputParser::mark(std::string_view marker) {
  if (!harmony_) return push(marker);
  OutputDelta delta;
  add(harmony_->mark(marker), delta);
  return delta;
}

OutputDelta OutputParser::finish() {
  OutputDelta delta;
  if (harmony_)
    add(harmony_->finish(), delta);
  else
    add(splitter_.finish(), true, delta);
  return delta;
}

void OutputParser::add(ReasoningSplitter::Delta&& parts, bool final, OutputDelta& delta) {
  delta.reasoning += parts.reasoning;
  if (!calls_) {
    delta.content += parts.content;
    return;
  }
  ToolCallParser::Delta found = calls_->push(parts.content);
  delta.content += found.content;
  for (ToolCallDelta& call : found.calls) add_call(std::move(call), delta);
  if (!final) return;
  ToolCallParser::Delta rest = calls_->finish();
  delta.content += rest.content;
  for (ToolCallDelta& call : rest.calls) add_call(std::move(call), delta);
}

void OutputParser::add(HarmonyParser::Delta&& parts, OutputDelta& delta) {
  delta.reasoning += parts.reasoning;
  delta.content += parts.content;
  for (ToolCallDelta& call : parts.calls) add_call(std::move(call), delta);
}

void OutputParser::add_call(ToolCallDelta&& call, OutputDelta& delta) {
  if (one_call_ && call.index > 0) return;
  append_tool_call(delta.tool_calls, std::move(call));
}

}  // namespace moectl::api
