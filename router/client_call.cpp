#include "router/client_call.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/api/cluster.h"
#include "core/api/json.h"
#include "core/base/error.h"
#include "core/base/hmac.h"
#include "router/prefix_index.h"

namespace moectl::router {
namespace {

constexpr int64_t kBytesPerToken = 4, kUsualAnswer = 128;

// Roles and contents one after the other, as a chat template will put them.
std::string prompt_bytes(const nlohmann::json& body) {
  std::string bytes;
  const auto add = [&](const nlohmann::json& value) {
    if (value.is_string()) {
      bytes += value.get_ref<const std::string&>();
    } else {
      bytes += value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    }
    bytes += '\n';
  };
  if (const auto messages = body.find("messages"); messages != body.end() && messages->is_array()) {
    for (const nlohmann::json& message : *messages) {
      if (!message.is_object()) continue;
      for (const char* field : {"role", "content", "tool_calls"})
        if (const auto value = message.find(field); value != message.end()) add(*value);
    }
  } else if (const auto prompt = body.find("prompt"); prompt != body.end()) {
    add(*prompt);
  }
  return bytes;
}

bool is_hex(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
bool is_zero(std::string_view s) {
  return s.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

ClientCall read_call(std::string_view body) {
  const nlohmann::json json = api::parse_json(body);
  if (!json.is_object())
    throw Error(Code::kInvalidArgument, "the request body must be a JSON object, not " + api::describe(json));
  ClientCall call;
  const auto text = [&](const char* name) {
    const auto value = json.find(name);
    return value != json.end() && value->is_string() ? value->get<std::string>() : std::string();
  };
  call.model = text("model");
  if (const auto stream = json.find("stream"); stream != json.end() && stream->is_boolean())
    call.stream = stream->get<bool>();
  const std::string prompt = prompt_bytes(json);
  call.prompt = prompt_blocks(call.model + "\n" + text("cache_salt"), prompt);
  call.tokens = int64_t(prompt.size()) / kBytesPerToken + kUsualAnswer;
  return call;
}

void check_client_headers(const http::Headers& headers) {
  for (const auto& [name, value] : headers)
    if (name.starts_with(api::kClusterHeaderPrefix))
      throw Error(Code::kInvalidArgument, fmt::format("header {}: only the router sends it, to workers", name), name);
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
