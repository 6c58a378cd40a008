#include "core/serving/request_context.h"

#include <algorithm>

#include "core/api/cluster.h"
#include "core/api/errors.h"
#include "core/base/hmac.h"

namespace moectl {
namespace {

// Further away is as good as never, and cannot overflow a clock.
constexpr int64_t kFarMs = int64_t(7) * 24 * 3600 * 1000;

bool is_hex(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

}  // namespace

Now read_clocks() {
  using std::chrono::duration_cast, std::chrono::milliseconds, std::chrono::system_clock;
  return {Clock::now(), duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count()};
}

std::string trace_id_of(std::string_view traceparent) {
  // version "-" trace id (32) "-" parent id (16) "-" flags (2); later versions may append to it.
  constexpr size_t kLength = 55;
  if (traceparent.size() < kLength || (traceparent.size() > kLength && traceparent[kLength] != '-')) return "";
  if (traceparent[2] != '-' || traceparent[35] != '-' || traceparent[52] != '-') return "";
  const std::string_view trace_id = traceparent.substr(3, 32);
  const bool all_zero = trace_id.find_first_not_of('0') == std::string_view::npos;
  if (all_zero || !is_hex(traceparent.substr(0, 2)) || !is_hex(trace_id) || !is_hex(traceparent.substr(36, 16)))
    return "";
  return std::string(trace_id);
}

std::string client_of(const http::Request& request, bool has_api_keys) {
  if (!has_api_keys) return "connection " + request.peer;
  return "key " + to_hex(sha256(api::api_key_of(request.header("authorization"))));
}

RequestContext read_context(const http::Request& request, std::string_view secret, const Now& now, bool has_api_keys) {
  RequestContext context{.id = request.id, .trace_id = trace_id_of(request.header("traceparent"))};
  context.client = client_of(request, has_api_keys);
  context.debug = request.header(api::kDebugHeader) == "1";
  const auto cluster = api::verify_cluster_headers(request.headers, request.body, secret, now.unix_ms);
  if (!cluster) return context;
  context.from_router = true;
  // A router sends the requests of many clients with one key: without its word each connection counts by itself.
  context.client = cluster->client.empty() ? client_of(request, false) : "router " + cluster->client;
  context.id = cluster->request_id;
  context.attempt = cluster->attempt;
  context.prefill_workers = cluster->prefill;
  if (cluster->deadline_unix_ms > 0) {
    const int64_t left = cluster->deadline_unix_ms > now.unix_ms ? cluster->deadline_unix_ms - now.unix_ms : 0;
    context.deadline = now.steady + std::chrono::milliseconds(std::min(left, kFarMs));
  }
  return context;
}

}  // namespace moectl
