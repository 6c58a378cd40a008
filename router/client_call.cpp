#include "router/client_call.h"

#include <algorithm>

#include "core/api/routing.h"
#include "core/base/error.h"
#include "core/base/hmac.h"
#include "router/prefix_index.h"
#include "router/quarantine.h"

namespace moectl::router {
namespace {

constexpr int64_t kBytesPerToken = 4, kUsualAnswer = 128;

bool is_hex(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
bool is_zero(std::string_view s) {
  return s.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

ClientCall read_call(std::string_view body) {
  const api::RoutingFields fields = api::read_routing_fields(body);
  ClientCall call;
  call.model = fields.model;
  call.stream = fields.stream;
  call.prompt = prompt_blocks(fmt::format("{}\n{}", fields.model, fields.cache_salt), fields.prompt);
  call.choices = fields.choices;
  call.tokens = int64_t(fields.prompt.size()) / kBytesPerToken + kUsualAnswer * call.choices;
  return call;
}

ClientBody read_body(std::string_view body) {
  return {read_call(body), Quarantine::key_of(body), api::digest_of(body)};
}

void check_client_headers(const http::Headers& headers) {
  for (const auto& [name, value] : headers)
    if (name.starts_with(api::kClusterHeaderPrefix))
      throw Error(Code::kInvalidArgument, fmt::format("header {}: only the router sends it, to workers", name), name);
}

std::string client_id(std::string_view api_key, std::string_view peer) {
  const BlockHash hash =
      api_key.empty() ? root_hash(fmt::format("peer {}", peer)) : root_hash(fmt::format("key {}", api_key));
  return fmt::format("{:016x}", hash.low);
}

std::string next_traceparent(std::string_view given) {
  uint8_t random[24];
  random_bytes(random, sizeof random);
  const std::string fresh = to_hex(random, sizeof random);
  const std::string span = fresh.substr(0, 16);
  // version - trace id - parent id - flags
  const bool good = given.size() == 55 && given.starts_with("00-") && given[35] == '-' && given[52] == '-' &&
                    is_hex(given.substr(3, 32)) && is_hex(given.substr(36, 16)) && is_hex(given.substr(53, 2)) &&
                    !is_zero(given.substr(3, 32)) && !is_zero(given.substr(36, 16));
  if (good) return fmt::format("00-{}-{}-{}", given.substr(3, 32), span, given.substr(53, 2));
  return fmt::format("00-{}-{}-01", fresh.substr(16), span);
}

std::string url_target(std::string_view path, std::string_view query) {
  std::string target;
  for (const char c : path) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       std::string_view("/-._~:@!$&'()*+,;=").find(c) != std::string_view::npos;
    if (plain) {
      target += c;
    } else {
      target += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  if (!query.empty()) target.append("?").append(query);
  return target;
}

}  // namespace moectl::router
