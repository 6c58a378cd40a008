// Splits an answer into reasoning and content at the markers a model writes. Works on text as it arrives, in pieces of
// any size: a marker cut into pieces never shows. One object an answer; one thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moectl::api {

// How a family of models marks its reasoning. Parsers are data; the splitter knows no model.
struct ReasoningFormat {
  std::string name;         // "deepseek_r1"
  std::string open, close;  // "<think>", "</think>"
};

const std::vector<ReasoningFormat>& reasoning_formats();
// Names with `_` or `-`. nullptr: there is no such parser.
const ReasoningFormat* find_reasoning_format(std::string_view name);

// Reasoning is what stands between the markers when the answer opens with `open` (blanks may precede it) or the prompt
// already ended with it. An answer that never closes it is reasoning only. White space next to the markers belongs to
// neither part. Later markers in the content are content.
class ReasoningSplitter {
 public:
  struct Delta {
    std::string reasoning, content;
  };
  // nullptr: everything is content. `opened`: the prompt ended with the opening marker.
  explicit ReasoningSplitter(const ReasoningFormat* format, bool opened = false);

  Delta push(std::string_view text);
  Delta finish();  // the end of the answer: everything held back

 private:
  enum class State { kStart, kReasoning, kAfterClose, kContent };
  Delta advance(bool final);

  const ReasoningFormat* format_;
  State state_;
  bool skip_blanks_ = true;  // directly after the opening marker
  std::string held_;         // not yet assigned
};

}  // namespace moectl::api
