#include "core/api/errors.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "core/api/json.h"
#include "core/base/json_depth.h"

namespace moectl::api {
namespace {

const char* type_of_status(int status) {
  switch (status) {
    case 401:
    case 403:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

int status_of_code(Code code) {
  switch (code) {
    case Code::kUsage:
    case Code::kInvalidArgument:
      return 400;
    case Code::kNotFound:
      return 404;
    case Code::kUnavailable:
      return 503;
    case Code::kResourceExhausted:
      return 429;
    case Code::kBadData:
    case Code::kBadConfig:
    case Code::kCancelled:
    case Code::kInternal:
      return 500;
  }
  return 500;
}

}  // namespace

ApiError from_status(int status, std::string_view message) {
  ApiError error{status, std::string(message), type_of_status(status)};
  if (status == 503 || status == 429) error.retry_after_seconds = 1;
  return error;
}

ApiError from_error(const Error& e) {
  ApiError error = from_status(status_of_code(e.code()), e.what());
  error.param = e.param();
  return error;
}

ApiError model_not_found(std::string_view model, std::string_view served) {
  ApiError error =
      from_status(404, fmt::format("The model `{}` does not exist; this server serves `{}`", model, served));
  error.param = "model";
  error.code = "model_not_found";
  return error;
}

ApiError context_length_exceeded(std::optional<size_t> num_prompt_tokens, int max_model_len, std::string_view param) {
  const std::string count = num_prompt_tokens ? fmt::format("{}", *num_prompt_tokens)
                                              : fmt::format("more than {}", 2 * int64_t(max_model_len));
  ApiError error = from_status(400, fmt::format("This model's maximum context length is {} tokens, prompt and answer "
                                                "together. The prompt has {} tokens; shorten it to at most {}.",
                                                max_model_len, count, max_model_len - 1));
  error.param = param;
  error.code = "context_length_exceeded";
  return error;
}

ApiError invalid_api_key() {
  ApiError error = from_status(401, "Missing or wrong API key. Send the header `Authorization: Bearer KEY`.");
  error.code = "invalid_api_key";
  return error;
}

ApiError loading() {
  ApiError error{503, "Loading model", "unavailable_error"};
  error.code = "503";
  error.retry_after_seconds = 1;
  return error;
}

ApiError draining() {
  ApiError error = from_status(503, "The server is shutting down and takes no new requests");
  error.retry_after_seconds = 5;
  return error;
}

ApiError engine_failed(std::string_view message) {
  ApiError error = from_status(503, message);
  error.code = kEngineFailed;
  return error;
}

namespace {

constexpr size_t kMaxErrorBytes = 256 << 10;

int status_of_type(std::string_view type) {
  if (type == "invalid_request_error") return 400;
  if (type == "authentication_error") return 401;
  if (type == "not_found_error") return 404;
  if (type == "rate_limit_error") return 429;
  if (type == "service_unavailable_error" || type == "unavailable_error") return 503;
  return 500;
}

}  // namespace

ApiError parse_error(std::string_view body, int status) {
  ApiError error;
  error.status = status > 0 ? status : 500;
  error.type = type_of_status(error.status);
  if (body.size() > kMaxErrorBytes) return error;
  try {
    check_json_depth(body, kMaxJsonDepth, "error");
  } catch (const Error&) {
    return error;
  }
  const auto json = nlohmann::json::parse(body, nullptr, false);
  const auto object = json.is_object() ? json.find("error") : json.end();
  if (!json.is_object() || object == json.end() || !object->is_object()) return error;
  const auto text = [&object](const char* name) {
    const auto it = object->find(name);
    return it != object->end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  error.message = text("message");
  error.param = text("param");
  error.code = text("code");
  if (const std::string type = text("type"); !type.empty()) error.type = type;
  if (status == 0) error.status = error.code == kEngineFailed ? 503 : status_of_type(error.type);
  return error;
}

std::string error_body(const ApiError& error) {
  nlohmann::ordered_json object = {
      {"message", error.message}, {"type", error.type}, {"param", nullptr}, {"code", nullptr}};
  if (!error.param.empty()) object["param"] = error.param;
  if (error.type == "unavailable_error")
    object["code"] = error.status;  // a number here, as llama.cpp's server and its clients have it
  else if (!error.code.empty())
    object["code"] = error.code;
  return to_text({{"error", object}});
}

bool equal_constant_time(std::string_view a, std::string_view b) {
  unsigned char difference = a.size() == b.size() ? 0 : 1;
  const std::string_view other = a.size() == b.size() ? b : a;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ other[i]);
  return difference == 0;
}

std::string_view api_key_of(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  const bool has_scheme = authorization.size() >= kScheme.size() &&
                          std::equal(kScheme.begin(), kScheme.end(), authorization.begin(),
                                     [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
  if (has_scheme) authorization.remove_prefix(kScheme.size());
  while (!authorization.empty() && authorization.front() == ' ') authorization.remove_prefix(1);
  while (!authorization.empty() && authorization.back() == ' ') authorization.remove_suffix(1);
  return authorization;
}

}  // namespace moectl::api
