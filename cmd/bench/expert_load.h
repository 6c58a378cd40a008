// The load of the experts in the report of `bench engine`.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/engine/engine.h"

namespace moectl {

// Waits for it: no request runs when a benchmark asks.
ExpertLoad wait_for_expert_load(Engine& engine);

// Tokens per layer, expert and rank, and how balanced they are; null where the model has no experts.
nlohmann::json expert_load_json(const ExpertLoad& load);
// A line, or two where there are several ranks; empty where no expert has computed a token.
std::string expert_load_text(const ExpertLoad& load);

}  // namespace moectl
