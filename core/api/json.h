// JSON at the door: strict parsing of request bodies and safe output. Pure functions, any thread.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moectl::api {

inline constexpr int kMaxJsonDepth = 64;
inline constexpr size_t kMaxJsonValues = 2u << 20;  // a value costs far more memory than its text: "[]," is 3 bytes

// Throws Error{kInvalidArgument} with position and reason for everything that is not exactly one JSON text: trailing
// bytes, NaN, numbers beyond a double, duplicate keys, invalid UTF-8, lone surrogates, nesting over kMaxJsonDepth.
nlohmann::json parse_json(std::string_view text);

// Compact text. Bytes that are not UTF-8 (a token may be part of a character) become U+FFFD.
std::string to_text(const nlohmann::ordered_json& value);

// What a value is, for messages: "a string", "an integer", "null" ...
std::string describe(const nlohmann::json& value);

}  // namespace moectl::api
