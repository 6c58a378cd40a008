// Increments: the outputs of one request's choices on their way from the engine (scheduler thread) to the request's
// coroutine (I/O thread). What the coroutine has not taken yet is merged by choice, so that a slow reader gets fewer
// and larger events, and bounded: a client that does not read its stream must not make the server keep it.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/engine/engine.h"
#include "core/http/async.h"

namespace moectl {

// Tokens of a stream that wait for its client, as they are in memory: 40 bytes per token, 200 with 20 logprobs.
inline constexpr size_t kMaxUnsentBytes = 512u << 10;

struct Increment {
  bool admitted = false;  // the next choice may be submitted; there is no output
  size_t choice_idx = 0;
  GenerateOutput output;
};

class Increments {
 public:
  // `max_bytes`: more than this not taken, and the request ends (overflowed()).
  Increments(std::string request_id, size_t num_choices, size_t max_bytes);

  // Any thread, in order for each choice. Throws Error{kCancelled} when the increments are not consumed any more: the
  // engine then ends the choice's request.
  void push(size_t choice_idx, GenerateOutput&& output);
  void push_admitted();  // any thread
  void close();          // any thread: the client is gone

  // For the coroutine. nullopt: closed, overflowed() or timed_out().
  Task<std::optional<Increment>> pop(Clock::duration timeout);
  bool timed_out() const { return ready_.timed_out(); }
  bool overflowed() const;

 private:
  const std::string request_id_;
  const size_t max_bytes_;
  AsyncQueue<size_t> ready_;  // choices that have something in waiting_, each once; or kAdmitted
  mutable std::mutex mutex_;
  std::vector<std::optional<GenerateOutput>> waiting_;  // by choice
  size_t waiting_bytes_ = 0;
  bool closed_ = false, overflowed_ = false;
};

}  // namespace moectl
