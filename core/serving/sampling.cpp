#include "core/serving/sampling.h"

#include <algorithm>
#include <random>

namespace moectl {
namespace {

// SplitMix64: neighbouring inputs give unrelated seeds.
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

template <class T>
float choose(const std::optional<double>& asked, const std::optional<T>& configured, float otherwise) {
  if (asked) return float(*asked);
  return configured ? float(*configured) : otherwise;
}

}  // namespace

SamplingParams to_engine_sampling(const api::Sampling& request, const GenerationDefaults& defaults, uint64_t seed,
                                  int choice_idx, size_t num_prompt_tokens, int max_model_len) {
  SamplingParams p;
  p.temperature = choose(request.temperature, defaults.temperature, 1.0f);
  p.top_p = choose(request.top_p, defaults.top_p, 1.0f);
  p.min_p = choose(request.min_p, defaults.min_p, 0.0f);
  p.repetition_penalty = choose(request.repetition_penalty, defaults.repetition_penalty, 1.0f);
  p.presence_penalty = float(request.presence_penalty.value_or(0));
  p.frequency_penalty = float(request.frequency_penalty.value_or(0));
  p.top_k = request.top_k ? *request.top_k : std::max(0, defaults.top_k.value_or(0));
  p.seed = choice_idx == 0 ? seed : mix(seed + uint64_t(choice_idx));
  p.logit_bias = request.logit_bias;
  const int room = std::max(1, max_model_len - int(std::min<size_t>(num_prompt_tokens, size_t(max_model_len))));
  p.max_tokens =
      std::clamp(request.max_tokens.value_or(room), 1, room);  // 0 (score only): one token is made, not shown
  p.min_tokens = std::min(request.min_tokens, p.max_tokens);
  p.ignore_eos = request.ignore_eos;
  p.stop_token_ids = request.stop_token_ids;
  p.num_logprobs = std::max(request.num_logprobs, request.num_prompt_logprobs);
  p.prompt_logprobs = request.num_prompt_logprobs >= 0;
  return p;
}

uint64_t draw_seed() {
  thread_local std::mt19937_64 generator{(uint64_t(std::random_device{}()) << 32) ^ std::random_device{}()};
  return generator();
}

}  // namespace moectl
