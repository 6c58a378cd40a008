// The event stream of a decode worker as the client shall see it: whole events only, without the workers' own comments
// (": moectl ..."), with pings. The first event of an answer carries no text (it names the role); it is kept back until
// text comes, so that until then another worker can begin anew. Pure; fed with whatever arrived.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moectl::router {

class SseFilter {
 public:
  static constexpr size_t kMaxEventBytes = 8 << 20;
  // Appends to `out` what may go on. The closing `data: [DONE]` is kept back: see done().
  void feed(std::string_view piece, std::string& out);

  bool done() const { return done_; }                  // [DONE] came; nothing after it counts
  const std::string& error() const { return error_; }  // the error object that the worker sent; it is not passed on
  bool overflow() const { return overflow_; }          // an event without an end
  int64_t num_events() const { return num_events_; }   // passed on
  const std::string& timeline() const { return timeline_; }  // the worker's, when it sent one

 private:
  void on_event(std::string_view event, std::string& out);
  void on_data(std::string lines, std::string& out);

  std::string pending_;
  size_t searched_ = 0;  // of pending_, without an end of an event
  bool done_ = false, overflow_ = false, has_first_ = false;
  int64_t num_events_ = 0;
  std::string first_, error_, timeline_;
};

}  // namespace moectl::router
