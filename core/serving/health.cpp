#include "core/serving/health.h"

#include <fmt/format.h>

#include "core/serving/instance.h"

namespace moectl {

Health health_of(const Instance& instance) {
  using enum Health::State;
  const InstancePhase phase = instance.phase;
  if (phase == InstancePhase::kLoading) return {kLoading, "Loading model"};
  const EngineStats stats = instance.engine->stats();
  if (stats.failed || phase == InstancePhase::kFailed)
    return {kFailed, "The engine has failed: " + stats.failure, stats.seconds_since_progress};
  if (stats.seconds_since_progress > double(instance.options.stall_timeout.count()))
    return {kStalled,
            fmt::format("The engine makes no progress: nothing computed for {:.0f} s", stats.seconds_since_progress),
            stats.seconds_since_progress};
  if (phase == InstancePhase::kDraining)
    return {kDraining, "The server is shutting down and takes no new requests", stats.seconds_since_progress};
  return {kReady, "", stats.seconds_since_progress};
}

std::string_view name_of(Health::State state) {
  switch (state) {
    case Health::State::kLoading:
      return "loading";
    case Health::State::kReady:
      return "ready";
    case Health::State::kDraining:
      return "draining";
    case Health::State::kStalled:
      return "stalled";
    case Health::State::kFailed:
      return "failed";
  }
  return "failed";
}

}  // namespace moectl
