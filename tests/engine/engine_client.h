// What the engine's tests share: the demo checkpoint, requests made of its golden prompts, and a client that waits.
#pragma once

#include <bit>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/engine/engine.h"
#include "tests/engine/gate.h"

namespace moectl::test {

inline const std::string kDemoDir = MOECTL_SOURCE_DIR "/models/demo";

struct GoldenCase {
  std::vector<int32_t> prompt_ids, output_ids;
};
std::vector<GoldenCase> golden_cases();

// The golden prompts one after the other, cut to `n` ids.
std::vector<int32_t> long_prompt(int n);

// Statistics are published after the sinks were called: waits until they show an idle engine.
EngineStats idle_stats(Engine& engine);

// An engine for tests: one thread, 1024 tokens of context, a pool for a few such sequences.
EngineConfig demo_config();

// Everything an answer consists of. Equality is of bits: logprobs compare by their representation.
struct Answer {
  std::vector<int32_t> ids;
  std::vector<uint32_t> numbers;  // of output and prompt logprobs, with the ids of alternatives
  FinishReason finish = FinishReason::kNone;
  std::string error;
  int num_cached_tokens = 0;
  int num_outputs_after_end = 0;
  int num_prefill_stats = 0;
  PrefillStats prefill;
  bool same_text(const Answer& o) const { return ids == o.ids && numbers == o.numbers && finish == o.finish; }
};

// Sends requests and waits for their ends. Outlives the engine's use of its sinks.
class Client {
 public:
  explicit Client(Engine& engine) : engine_(engine) {}

  // Returns an index. `on_output` runs on the scheduler thread, after the output was recorded.
  size_t send(GenerateRequest request, std::function<void(const Answer&)> on_output = {});
  uint64_t handle(size_t index) const;
  Answer wait(size_t index);
  // Waits until the answer has `num_tokens` tokens or has ended.
  void wait_for_tokens(size_t index, size_t num_tokens);
  Answer ask(GenerateRequest request) { return wait(send(std::move(request))); }

 private:
  struct Slot {
    uint64_t handle = 0;
    Answer answer;
  };
  Engine& engine_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Slot>> slots_;
};

}  // namespace moectl::test
