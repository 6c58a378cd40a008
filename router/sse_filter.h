// The event stream of a decode worker as the client shall see it: without the workers' own comments (": moectl ..."),
// with pings. Events without text (the roles that a chat begins with) are held back until text comes, so that until
// then another worker can begin anew. Events are passed on whole, but for very large ones, which pass in pieces:
// memory stays bounded whatever an event's size. Pure; fed with whatever arrived.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moectl::router {

class SseFilter {
 public:
  static constexpr size_t kMaxWholeEvent = 256 << 10;  // larger ones pass in pieces
  static constexpr size_t kMaxHeld = 64 << 10;         // of events without text

  // Appends to `out` what may go on. The closing `data: [DONE]` is kept back: see done().
  void feed(std::string_view piece, std::string& out);

  bool done() const { return done_; }                  // [DONE] came; nothing after it counts
  const std::string& error() const { return error_; }  // the error object that the worker sent; it is not passed on
  bool nonsense() const { return nonsense_; }          // no event stream of a worker
  bool amid_event() const { return passing_; }         // part of an event has been passed on
  int64_t num_events() const { return num_events_; }   // passed on
  const std::string& timeline() const { return timeline_; }  // the worker's, when it sent one

 private:
  void on_event(std::string_view event, std::string& out);
  void on_data(std::string lines, std::string& out);
  void release_held(std::string& out);
  void pass_large(std::string& out);

  std::string pending_;
  size_t searched_ = 0;   // of pending_, without an end of an event
  bool passing_ = false;  // amid an event that passes in pieces
  bool done_ = false, nonsense_ = false, has_text_ = false;
  int64_t num_events_ = 0, num_held_ = 0;
  std::string held_, error_, timeline_;
};

}  // namespace moectl::router
