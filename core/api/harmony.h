// The harmony format of gpt-oss: an answer is a row of messages, each on a channel and perhaps to a recipient:
//   <|channel|>analysis<|message|>text<|end|><|start|>assistant<|channel|>commentary to=functions.f
//   <|constrain|>json<|message|>{...}<|call|>
// Markers are tokens and come by mark(); text that only spells one is text, as in the reference. The prompt has written
// the first <|start|>assistant. One object an answer; one thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/api/tool_parser.h"

namespace moectl::api {

class HarmonyParser {
 public:
  struct Delta {
    std::string reasoning, content;
    std::vector<ToolCallDelta> calls;
  };
  // `reasoning`: the analysis channel is reasoning; else it is content. `tools`: messages to functions are calls; else
  // content.
  HarmonyParser(bool reasoning, bool tools) : reasoning_(reasoning), tools_(tools) {}

  static const std::vector<std::string_view>& markers();

  Delta push(std::string_view text);
  Delta mark(std::string_view marker);  // one of markers()
  Delta finish();
  bool in_reasoning() const { return state_ == State::kBody && field_ == Field::kReasoning; }

 private:
  enum class State { kHeader, kBody };
  enum class Field { kReasoning, kContent, kCall };
  void open_message(Delta& delta);

  const bool reasoning_, tools_;
  State state_ = State::kHeader;
  Field field_ = Field::kContent;
  std::string header_;                     // role, channel and recipient as written; a blank for each marker between
  size_t channel_at_ = std::string::npos;  // where the channel's name begins in it
  bool marked_ = false;                    // some marker came: the answer is in this format
  bool has_reasoning_ = false, has_content_ = false;
  int num_calls_ = 0;
  bool has_arguments_ = false;  // of the current call
};

}  // namespace moectl::api
