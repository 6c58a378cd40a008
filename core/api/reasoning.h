// Splits an answer into reasoning and content at the markers a model writes. Works on text as it arrives, in pieces of
// any size: a marker cut into pieces never shows. One object an answer; one thread.
#pragma once

#include <string>
#include <string_view>

#include "core/api/output_formats.h"

namespace moectl::api {

// Reasoning is what stands between the markers when the answer opens with `open` (blanks may precede it) or the prompt
// already ended with it. An answer that never closes it is reasoning only. White space next to the markers belongs to
// neither part. Later markers in the content are content. The markers around a whole answer (`answer_open`) are
// dropped.
class ReasoningSplitter {
 public:
  struct Delta {
    std::string reasoning, content;
  };
  // nullptr: everything is content. `opened`: the prompt ended with the opening marker. `tools`: the format's tool
  // marker ends reasoning, and stays in the content.
  explicit ReasoningSplitter(const ReasoningFormat* format, bool opened = false, bool tools = false);

  Delta push(std::string_view text);
  Delta finish();  // the end of the answer: everything held back
  bool in_reasoning() const { return state_ == State::kReasoning; }

 private:
  enum class State { kStart, kReasoning, kBeforeContent, kContent };
  Delta advance(bool final);
  bool start(bool final);
  void read_reasoning(bool final, Delta& delta);
  bool read_before_content(bool final);
  void read_content(bool final, Delta& delta);

  const ReasoningFormat* format_;
  const bool tools_;
  State state_;
  bool skip_blanks_ = true;      // directly after the opening marker
  bool may_open_answer_ = true;  // `answer_open` has not been seen
  bool in_answer_ = false;       // `answer_close` is to come
  std::string held_;             // not yet assigned
};

}  // namespace moectl::api
