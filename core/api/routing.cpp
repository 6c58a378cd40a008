#include "core/api/routing.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/api/json.h"
#include "core/base/error.h"

namespace moectl::api {
namespace {

namespace dom = simdjson::dom;

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
    throw Error(Code::kInvalidArgument, fmt::format("the request body nests deeper than {} levels", kMaxJsonDepth));
  throw Error(Code::kInvalidArgument,
              fmt::format("the request body is not valid JSON: {}", simdjson::error_message(error)));
}

}  // namespace

RoutingFields read_routing_fields(std::string_view body) {
  if (body.empty()) throw Error(Code::kInvalidArgument, "the request body is empty; a JSON object is expected");
  dom::parser parser, null_parser;
  dom::element root, null;
  if (const auto error = parser.allocate(body.size(), size_t(kMaxJsonDepth) + 1)) refuse_json(error);
  if (const auto error = parser.parse(body.data(), body.size()).get(root)) refuse_json(error);
  if (const auto error = null_parser.parse(std::string_view("null")).get(null)) refuse_json(error);
  if (!root.is_object())
    throw Error(Code::kInvalidArgument, fmt::format("the request body must be a JSON object, not {}",
                                                    root.is_array() ? "an array" : "a single value"));
  const Fields fields = read_fields(root, null);
  return {.model = std::string(text_of(fields.model)),
          .cache_salt = std::string(text_of(fields.cache_salt)),
          .prompt = prompt_bytes(fields),
          .stream = fields.stream.is_bool() && bool(fields.stream),
          .choices = num_choices(fields)};
}

std::string answer_problem(std::string_view body, bool has_choices) {
  dom::parser parser;
  dom::object object;
  if (parser.parse(body.data(), body.size()).get(object)) return "it is not a JSON object";
  dom::array choices;
  if (has_choices && object["choices"].get(choices)) return "it has no list `choices`";
  return "";
}

}  // namespace moectl::api
