#include "router/client_call.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <array>

#include "core/api/json.h"
#include "core/base/error.h"
#include "core/base/hmac.h"
#include "router/prefix_index.h"
#include "router/quarantine.h"

namespace moectl::router {
namespace {

namespace dom = simdjson::dom;

constexpr int64_t kBytesPerToken = 4, kUsualAnswer = 128;
constexpr int64_t kMostChoices = 4096;  // counted; a worker refuses fewer

// The fields that routing reads. One that stands there twice would be read by the router in one way, and by the worker
// perhaps in another.
struct Fields {
  dom::element model, stream, messages, prompt, n, cache_salt;
  std::array<std::pair<std::string_view, dom::element*>, 6> all() {
    return {{{"model", &model},
             {"stream", &stream},
             {"messages", &messages},
             {"prompt", &prompt},
             {"n", &n},
             {"cache_salt", &cache_salt}}};
  }
};

bool is_set(const dom::element& element) {
  return !element.is_null();
}

Fields read_fields(const dom::object& object, const dom::element& null) {
  Fields fields{null, null, null, null, null, null};
  std::array<bool, 6> seen{};
  const auto known = fields.all();
  for (const auto& [key, value] : object) {
    const auto it = std::find_if(known.begin(), known.end(), [key = key](const auto& f) { return f.first == key; });
    if (it == known.end()) continue;
    if (std::exchange(seen[size_t(it - known.begin())], true))
      throw Error(Code::kInvalidArgument,
                  fmt::format("the request body is not valid JSON: the key \"{}\" occurs twice in one object", key));
    *it->second = value;
  }
  return fields;
}

std::string_view text_of(const dom::element& element) {
  return element.is_string() ? std::string_view(element) : std::string_view();
}

void add_prompt(const dom::element& value, std::string& bytes) {
  if (value.is_string()) {
    bytes += std::string_view(value);
  } else {
    bytes += simdjson::minify(value);
  }
  bytes += '\n';
}

// Roles and contents one after the other, as a chat template will put them.
std::string prompt_bytes(const Fields& fields) {
  std::string bytes;
  if (fields.messages.is_array()) {
    for (const dom::element message : dom::array(fields.messages)) {
      if (!message.is_object()) continue;
      for (const char* field : {"role", "content", "tool_calls"})
        if (dom::element value; dom::object(message).at_key(field).get(value) == simdjson::SUCCESS)
          add_prompt(value, bytes);
    }
  } else if (is_set(fields.prompt)) {
    add_prompt(fields.prompt, bytes);
  }
  return bytes;
}

// A list of strings, or of lists of ids, is a list of prompts; a list of ids is one.
int64_t num_prompts(const dom::element& prompt) {
  if (!prompt.is_array()) return 1;
  const dom::array list = prompt;
  if (list.begin() == list.end()) return 1;
  const dom::element first = *list.begin();
  if (!first.is_string() && !first.is_array()) return 1;
  int64_t count = 0;
  for ([[maybe_unused]] const dom::element each : list)
    if (++count == kMostChoices) break;
  return count;
}

int num_choices(const Fields& fields) {
  int64_t n = 1;
  if (fields.n.is_int64()) n = std::clamp<int64_t>(int64_t(fields.n), 1, kMostChoices);
  if (fields.n.is_double()) n = int64_t(std::clamp(double(fields.n), 1.0, double(kMostChoices)));
  return int(std::min(n * num_prompts(fields.prompt), kMostChoices));
}

[[noreturn]] void refuse_json(simdjson::error_code error) {
  if (error == simdjson::DEPTH_ERROR)
    throw Error(Code::kInvalidArgument,
                fmt::format("the request body nests deeper than {} levels", api::kMaxJsonDepth));
  throw Error(Code::kInvalidArgument,
              fmt::format("the request body is not valid JSON: {}", simdjson::error_message(error)));
}

bool is_hex(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
bool is_zero(std::string_view s) {
  return s.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

ClientCall read_call(std::string_view body) {
  if (body.empty()) throw Error(Code::kInvalidArgument, "the request body is empty; a JSON object is expected");
  dom::parser parser;
  if (const auto error = parser.allocate(body.size(), size_t(api::kMaxJsonDepth) + 1)) refuse_json(error);
  dom::element root, null;
  if (const auto error = parser.parse(body.data(), body.size()).get(root)) refuse_json(error);
  if (!root.is_object())
    throw Error(Code::kInvalidArgument, fmt::format("the request body must be a JSON object, not {}",
                                                    root.is_array() ? "an array" : "a single value"));
  dom::parser null_parser;
  if (const auto error = null_parser.parse(std::string_view("null")).get(null)) refuse_json(error);
  const Fields fields = read_fields(root, null);
  ClientCall call;
  call.model = text_of(fields.model);
  call.stream = fields.stream.is_bool() && bool(fields.stream);
  const std::string prompt = prompt_bytes(fields);
  call.prompt = prompt_blocks(fmt::format("{}\n{}", call.model, text_of(fields.cache_salt)), prompt);
  call.choices = num_choices(fields);
  call.tokens = int64_t(prompt.size()) / kBytesPerToken + kUsualAnswer * call.choices;
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
