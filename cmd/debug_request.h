// The parts of `moectl debug-request` between its options and its output, without sockets: the request that is sent,
// what came back, and the timeline as text.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cmd/command.h"
#include "cmd/sse_answer.h"
#include "core/api/cluster.h"
#include "core/http/message.h"

namespace moectl {

struct DebugRequest {
  std::string method, url;
  http::Headers headers;  // names in lower case
  std::string body;
};

// Throws Error{kUsage} for options that do not make a request, Error{kNotFound} for a body file that cannot be read.
// `read_stdin` gives the body of `--body -`.
DebugRequest build_debug_request(const DebugRequestOptions& options, std::string (*read_stdin)());

// As the client's clock saw it, from the moment the request was sent.
struct ClientTimes {
  double head_ms = 0, total_ms = 0;
  std::optional<double> ttft_ms;  // the first event with text
  std::vector<double> gaps_ms;    // between events with text
};

struct DebugChoice {
  std::string content, reasoning, tool_calls, finish_reason;
};

struct DebugOutcome {
  int status = 0;
  http::Headers headers;
  bool streamed = false;     // an event stream
  bool complete = false;     // [DONE] was seen, or the body ended where it should
  bool interrupted = false;  // by Ctrl-C
  std::string error;         // of an error event, of an error body, or why the answer broke off
  std::string answer_id;     // "chatcmpl-..."
  std::map<int, DebugChoice> choices;
  std::optional<AnswerUsage> usage;
  std::string body;           // not streamed: as it came
  std::string timeline_json;  // as it came; empty: the server gave none
  ClientTimes times;

  bool succeeded() const { return status >= 200 && status < 300 && complete && error.empty(); }
};

// What stands in the answer of an event or a whole body.
void add_to_outcome(DebugOutcome& outcome, const AnswerEvent& event);

// Throws Error{kBadData} when it is no timeline.
api::Timeline parse_timeline(std::string_view json);
// The stages as bars on one axis, with the inner timeline nested, the routing and the ids: at most 100 columns of
// printable text.
std::string timeline_text(const api::Timeline& timeline, const ClientTimes& client, bool color);
std::string client_text(const ClientTimes& client);

std::string outcome_json(const DebugRequest& request, const DebugOutcome& outcome);

// Text of a server for a terminal: control characters other than line feed and tab are written out (\x1b), so that it
// cannot move the cursor or set the title. Takes and leaves whole UTF-8 characters.
std::string printable(std::string_view text);

}  // namespace moectl
