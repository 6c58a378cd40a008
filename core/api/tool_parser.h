// Takes tool calls out of an answer as it arrives, for every family whose calls stand between markers in the text
// (ToolFormat; harmony has its own machine). What is certain goes out at once: a call's name when it is whole, then its
// arguments piece by piece; a marker cut into pieces never shows. One object an answer; one thread.
//
// A call that goes wrong before its name is known is content, as it was written. After that its arguments stay as far
// as they came. Names are not compared with the request's tools: whether to run a call is for the client.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/json_call.h"
#include "core/api/output_formats.h"
#include "core/api/tool_arguments.h"

namespace moectl::api {

using ToolsJson = std::shared_ptr<const nlohmann::ordered_json>;  // the request's `tools`, checked

// A part of one call. The first one of a call has its name (and its id, when the model gave one).
struct ToolCallDelta {
  int index = 0;  // of the call in the answer
  std::string id, name, arguments;
};
// Adds a part to the last one when both belong to one call.
void append_tool_call(std::vector<ToolCallDelta>& calls, ToolCallDelta&& more);

class ToolCallParser {
 public:
  struct Delta {
    std::string content;
    std::vector<ToolCallDelta> calls;
  };
  // `tools`: types of arguments between tags; null: none are known.
  ToolCallParser(const ToolFormat& format, ToolsJson tools);

  Delta push(std::string_view text);
  Delta finish();  // the end of the answer: everything held back

 private:
  enum class State {
    kContent,
    kSection,  // between the calls of a section
    kKind,     // what stands before the name
    kName,
    kJson,      // the whole call
    kArgsOpen,  // a fence may follow
    kArgs,      // JSON, passed on
    kParams,    // between arguments with tags
    kKey,
    kValueOpen,
    kValue,
    kAfterArgs,  // up to the end of the call
  };

  // Each reads what it can from `held_`; false: more text is needed.
  bool step(bool final);
  bool read_content(bool final);
  bool read_section(bool final);
  bool read_kind();
  bool read_name();
  bool read_json();
  bool read_args_open();
  bool read_args();
  bool read_params(bool final);
  bool read_key();
  bool read_value_open();
  bool read_value();
  bool read_after_args(bool final);

  void begin_body();
  void begin_call(std::string_view name_as_written);
  void add_arguments(std::string_view text);
  void end_call(std::string_view marker);
  bool give_up();
  void add_content(std::string_view text);
  void begin_value();
  void end_value();
  std::string take(size_t num_bytes);

  const ToolFormat& format_;
  const ToolsJson tools_;
  State state_ = State::kContent;
  Delta delta_;
  std::string held_;         // not yet read
  std::string raw_;          // read, but content again if no call comes of it
  std::string blanks_;       // at the end of content: dropped before a call
  bool after_call_ = false;  // blanks that follow are layout
  int num_calls_ = 0;
  std::string name_;
  bool has_arguments_ = false;  // of the current call
  std::optional<JsonCallReader> json_;
  // The current argument between tags.
  std::string key_, value_;
  TypeSet types_ = kAnyType;
  bool streams_ = false;      // a string: goes out as it comes
  bool value_began_ = false;  // its first byte was seen
};

}  // namespace moectl::api
