#include "core/serving/prepare.h"

#include <string>
#include <utility>
#include <variant>

#include "core/api/cost.h"
#include "core/base/error.h"
#include "core/serving/request_context.h"

namespace moectl {
namespace {

// Who asks, before the router's signature is checked, which is work over the whole body as well. Whoever forges the
// header gets a turn of its own, as it would with one more connection, and then 400.
std::string client_for_turns(const Instance& instance, const http::Request& request) {
  const std::string_view told = request.header("x-moectl-cluster-client");
  if (!told.empty() && !instance.options.cluster_secret.empty()) return "router " + std::string(told);
  return client_of(request, !instance.options.api.api_keys.empty());
}

}  // namespace

Task<std::unique_ptr<Admission::Ticket>> turn_to_prepare(Instance& instance, http::Exchange& exchange) {
  const http::Request& request = exchange.request();
  if (request.body.size() <= api::kLargeBodyBytes) co_return nullptr;
  auto turns = std::make_shared<AsyncQueue<std::monostate>>();
  auto on_admitted = [turns] { turns->push({}); };
  std::unique_ptr<Admission::Ticket> ticket =
      instance.large_jobs.enter(client_for_turns(instance, request), 1, 0, std::move(on_admitted));
  if (ticket->num_admitted_at_once() > 0) co_return ticket;
  auto gone = std::make_shared<bool>(false);  // callback and coroutine are on one strand
  exchange.on_client_gone([turns, gone] {
    *gone = true;
    turns->close();
  });
  co_await turns->pop();
  if (*gone) throw Error(Code::kCancelled, "the client went away");
  exchange.on_client_gone(nullptr);  // whoever comes next hears of it
  co_return ticket;
}

}  // namespace moectl
