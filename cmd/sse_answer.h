// An OpenAI answer as a client reads it: the bytes of an event stream into events and comments, and the JSON of one
// event, or of a whole response, into what tools need of it. Pure. Nothing that a server sends makes it allocate
// without bound or recurse.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moectl {

class SseReader {
 public:
  struct Item {
    bool is_comment = false;
    std::string text;  // the data lines of an event, joined by line feeds; or what stands behind ':' and one blank
  };
  // Takes any piece of the stream; returns what it completes. Throws Error{kBadData} when a line or an event is larger
  // than 16 MiB. An event that the stream's end cuts off never appears.
  std::vector<Item> feed(std::string_view bytes);

 private:
  void take_line(std::string_view line, std::vector<Item>& items);

  std::string line_;  // begun and not ended
  std::string data_;
  bool has_data_ = false, skip_line_feed_ = false;
};

struct AnswerDelta {
  int index = 0;                   // of the choice
  std::string content, reasoning;  // text that this event adds; of a whole response: all of it
  std::string tool_calls;          // the same of tool calls: a line for each, its name, a blank, its arguments
  int num_token_ids = 0;           // 0 unless the server sends ids
  std::string finish_reason;

  bool has_tokens() const { return !content.empty() || !reasoning.empty() || !tool_calls.empty() || num_token_ids > 0; }
};

struct AnswerUsage {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
};

struct AnswerEvent {
  bool done = false;  // [DONE]
  bool is_error = false;
  std::string error;  // its message
  std::string id;
  std::vector<AnswerDelta> deltas;
  std::optional<AnswerUsage> usage;
};

// `json` is the data of an event, or the body of an answer that is not streamed. Throws Error{kBadData} when it is
// neither [DONE] nor a JSON object.
AnswerEvent parse_answer(std::string_view json);

// The message of an OpenAI error object, or empty.
std::string error_message(std::string_view json);

}  // namespace moectl
