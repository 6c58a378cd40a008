#include "core/serving/instance.h"

#include <optional>
#include <utility>

#include "core/base/hmac.h"
#include "core/base/log.h"

namespace moectl {
namespace {

std::optional<api::ApiError> refusal(const Instance& instance, bool generates, const http::Request& request) {
  if (!instance.loaded()) return api::loading();
  if (generates) {
    const Health health = health_of(instance);
    if (health.state == Health::State::kDraining) return api::draining();
    if (!health.works()) return api::from_status(503, health.reason);
  }
  if (!request.body.empty() && !is_json_type(request.header("content-type"))) return unsupported_type();
  return std::nullopt;
}

}  // namespace

std::string random_instance_id() {
  uint8_t random[8];
  random_bytes(random, sizeof random);
  return to_hex(random, sizeof random);
}

void start_draining(Instance& instance) {
  InstancePhase expected = InstancePhase::kReady;
  if (!instance.phase.compare_exchange_strong(expected, InstancePhase::kDraining)) return;
  log::info("draining: no new requests, {} in flight", instance.num_in_flight());
}

bool stop_draining(Instance& instance) {
  if (instance.shutting_down) return false;
  InstancePhase expected = InstancePhase::kDraining;
  if (!instance.phase.compare_exchange_strong(expected, InstancePhase::kReady)) return true;
  // A shutdown that began meanwhile found the instance draining already.
  if (instance.shutting_down) {
    start_draining(instance);
    return false;
  }
  log::info("draining ended: requests are taken again");
  return true;
}

int Instance::num_in_flight() const {
  return in_flight + (loaded() && kv_server ? int(kv_server->stats().num_active) : 0);
}

http::Handler when_ready(Instance& instance, bool generates, http::Handler handler) {
  return [&instance, generates, handler = std::move(handler)](http::Exchange& exchange) -> Task<void> {
    if (auto error = refusal(instance, generates, exchange.request())) {
      http::Response response = error_response(*error);
      co_await exchange.respond(std::move(response));
      co_return;
    }
    co_await handler(exchange);
  };
}

}  // namespace moectl
