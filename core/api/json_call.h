// Reads calls written as JSON, {"name": "f", "arguments": {...}} or a list of such objects, byte by byte as they
// arrive, and passes the arguments on as they were written. Markers inside JSON strings are text to it. `parameters`
// may stand for `arguments`; other members are skipped. One object a text; one thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moectl::api {

class JsonCallReader {
 public:
  struct Event {
    enum class Kind { kName, kArguments, kEnd } kind;
    std::string text;  // the name; a piece of arguments
  };

  // Reads one value, the arguments of a call whose name is known.
  static JsonCallReader arguments_only();

  // Appends what `text` completes to `events` and returns how many of its bytes were used: all, unless done() or
  // failed() is true now. The byte that failed is not used.
  size_t feed(std::string_view text, std::vector<Event>& events);
  bool done() const { return state_ == State::kDone; }
  bool failed() const { return state_ == State::kFailed; }

 private:
  enum class State {
    kStart,
    kObject,  // in a list: an object must follow
    kKeyOrEnd,
    kKey,
    kColon,
    kValue,  // its first byte
    kInValue,
    kCommaOrEnd,
    kNextOrEnd,  // in a list, after an object
    kDone,
    kFailed,
  };
  enum class Member { kName, kArguments, kOther };

  bool put(char c, std::vector<Event>& events);  // false: not used
  bool start_value(char c);
  bool continue_text(char c, std::vector<Event>& events);  // a key or the name
  bool continue_value(char c, std::vector<Event>& events);
  void keep(char c);
  void end_value() { state_ = arguments_only_ ? State::kDone : State::kCommaOrEnd; }
  bool fail();

  State state_ = State::kStart;
  bool in_list_ = false, arguments_only_ = false;
  // The value being read.
  Member member_ = Member::kOther;
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false, scalar_ = false;
  std::string text_;       // a key or a name, with its escapes
  std::string arguments_;  // read before the name, or not yet passed on
  bool has_name_ = false, has_arguments_ = false;
};

}  // namespace moectl::api
