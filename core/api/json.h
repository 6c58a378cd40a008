// JSON at the door: strict parsing of request bodies and safe output. Pure functions, any thread.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moectl::api {

inline constexpr int kMaxJsonDepth = 64;
inline constexpr size_t kMaxJsonValues = 2u << 20;  // a value costs far more memory than its text: "[]," is 3 bytes

// Throws Error{kInvalidArgument} with position and reason for everything that is not exactly one JSON text: trailing
// bytes, NUL, NaN, numbers beyond a double, duplicate keys, invalid UTF-8, lone surrogates, nesting over kMaxJsonDepth.
// simdjson reads the text; what it refuses is read again by nlohmann's reader, which says what is wrong. Time is linear
// in the text, but for sorting the keys of an object.
nlohmann::json parse_json(std::string_view text);
nlohmann::ordered_json parse_ordered_json(std::string_view text);  // keys in their order
// One member of the object that `text` is, with the keys below it in their order; null when there is none. What stands
// beside it is validated but not built.
nlohmann::ordered_json parse_ordered_member(std::string_view text, std::string_view name);

// Compact text. Bytes that are not UTF-8 (a token may be part of a character) become U+FFFD.
std::string to_text(const nlohmann::ordered_json& value);

// What a value is, for messages: "a string", "an integer", "null" ...
std::string describe(const nlohmann::json& value);

}  // namespace moectl::api
