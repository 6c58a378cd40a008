// OpenAI error objects and the HTTP status they travel with. Pure, any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace moectl::api {

struct ApiError {
  int status = 500;
  std::string message;
  std::string type = "server_error";
  std::string param, code;      // empty: null
  int retry_after_seconds = 0;  // 0: no Retry-After header
};

ApiError from_error(const Error& error);
// For refusals by the HTTP layer (404, 405, 413, 415 ...): the type that belongs to the status.
ApiError from_status(int status, std::string_view message);
ApiError model_not_found(std::string_view model, std::string_view served);
// nullopt: the prompt is so long that its tokens were not counted.
ApiError context_length_exceeded(std::optional<size_t> num_prompt_tokens, int max_model_len, std::string_view param);
ApiError invalid_api_key();
ApiError loading();  // 503 in the form that clients of other servers already wait on
ApiError draining();
ApiError engine_failed(std::string_view message);  // while it computed this request; a router must know that
inline constexpr std::string_view kEngineFailed = "engine_failed";  // its code

// The error object of an answer or of a stream's event; `status` is the answer's, 0: by the object's type. A body that
// is none gives an error that has the status alone.
ApiError parse_error(std::string_view body, int status);

std::string error_body(const ApiError& error);  // {"error":{"message","type","param","code"}}

// Compares in a time that depends on the lengths only.
bool equal_constant_time(std::string_view a, std::string_view b);
// "Bearer KEY" (any case of the word) or the bare token as EAS sends it.
std::string_view api_key_of(std::string_view authorization);

}  // namespace moectl::api
