#include "core/serving/expert_load.h"

#include <utility>

namespace moectl {
namespace {

constexpr std::chrono::milliseconds kPatience{100};

}  // namespace

void read_expert_load(Instance& instance, std::function<void()> done) {
  if (instance.reads_expert_load.exchange(true)) return;
  instance.engine->read_expert_load([&instance, done = std::move(done)](const ExpertLoad& load) {
    instance.metrics.set_expert_load(load);
    instance.reads_expert_load = false;
    if (done) done();
  });
}

Task<void> refresh_expert_load(Instance& instance) {
  if (instance.reads_expert_load) co_return;
  AsyncQueue<std::monostate> answered;
  read_expert_load(instance, [answered]() mutable { answered.push({}); });
  co_await answered.pop(kPatience);
}

}  // namespace moectl
