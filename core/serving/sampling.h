// From what a request says about sampling to what the engine does: defaults of the checkpoint, seeds, bounds. Pure.
#pragma once

#include "core/api/openai.h"
#include "core/engine/engine.h"
#include "core/model/config.h"

namespace moectl {

// `seed` is the request's (or a drawn one); choice 0 uses it as it is, the others seeds derived from it. max_tokens is
// an upper bound and is lowered to what the context still holds.
SamplingParams to_engine_sampling(const api::Sampling& request, const GenerationDefaults& defaults, uint64_t seed,
                                  int choice_idx, size_t num_prompt_tokens, int max_model_len);

uint64_t draw_seed();  // unpredictable; any thread

}  // namespace moectl
