#include "tests/engine/engine_client.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace moectl::test {

std::vector<GoldenCase> golden_cases() {
  std::ifstream file(kDemoDir + "/golden.json");
  std::vector<GoldenCase> cases;
  const auto golden = nlohmann::json::parse(file);
  for (const auto& c : golden.at("cases"))
    cases.push_back({c.at("prompt_ids").get<std::vector<int32_t>>(), c.at("output_ids").get<std::vector<int32_t>>()});
  return cases;
}

std::vector<int32_t> long_prompt(int n) {
  std::vector<int32_t> ids;
  const auto cases = golden_cases();
  for (size_t i = 0; int(ids.size()) < n; ++i) {
    const auto& p = cases[i % cases.size()].prompt_ids;
    ids.insert(ids.end(), p.begin(), p.end());
  }
  ids.resize(size_t(n));
  return ids;
}

EngineStats idle_stats(Engine& engine) {
  for (;;) {
    const EngineStats s = engine.stats();
    if (s.num_running + s.num_waiting == 0 && s.seconds_since_progress == 0.0) return s;
    std::this_thread::yield();
  }
}

EngineConfig demo_config() {
  return {
      .model_dir = kDemoDir, .num_threads = 1, .max_model_len = 1024, .max_num_seqs = 16, .kv_cache_bytes = 32 << 20};
}

size_t Client::send(GenerateRequest request, std::function<void(const Answer&)> on_output) {
  auto slot = std::make_unique<Slot>();
  Slot* s = slot.get();
  size_t index = 0;
  {
    std::lock_guard lock(mutex_);
    index = slots_.size();
    slots_.push_back(std::move(slot));
  }
  const auto record = [](Answer& a, const GenerateOutput::Token& t) {
    a.numbers.push_back(std::bit_cast<uint32_t>(t.logprob));
    for (const TokenLogprob& top : t.top) {
      a.numbers.push_back(uint32_t(top.token_id));
      a.numbers.push_back(std::bit_cast<uint32_t>(top.logprob));
    }
  };
  const uint64_t handle = engine_.submit(std::move(request), [this, s, record, on_output](GenerateOutput&& output) {
    Answer copy;
    {
      std::lock_guard lock(mutex_);
      Answer& a = s->answer;
      a.num_outputs_after_end += a.finish != FinishReason::kNone;
      for (const auto& t : output.prompt_tokens) record(a, t);
      for (const auto& t : output.tokens) {
        a.ids.push_back(t.id);
        record(a, t);
      }
      a.finish = output.finish;
      a.error = output.error;
      a.num_cached_tokens = output.num_cached_tokens;
      if (output.prefill) {
        ++a.num_prefill_stats;
        a.prefill = *output.prefill;
      }
      copy = a;
      changed_.notify_all();  // under the lock: who waits may destroy the client as soon as it can look
    }
    if (on_output) on_output(copy);
  });
  std::lock_guard lock(mutex_);
  s->handle = handle;
  return index;
}

uint64_t Client::handle(size_t index) const {
  std::lock_guard lock(mutex_);
  return slots_[index]->handle;
}

Answer Client::wait(size_t index) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return slots_[index]->answer.finish != FinishReason::kNone; });
  return slots_[index]->answer;
}

void Client::wait_for_tokens(size_t index, size_t num_tokens) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    const Answer& a = slots_[index]->answer;
    return a.ids.size() >= num_tokens || a.finish != FinishReason::kNone;
  });
}

}  // namespace moectl::test
