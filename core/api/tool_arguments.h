// Arguments that a model writes as text between tags, typed by the schemas of the request's tools. Pure, any thread.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moectl::api {

// JSON types that a schema allows, as bits; kAnyType: the schema says nothing.
using TypeSet = uint8_t;
inline constexpr TypeSet kAnyType = 0, kStringType = 1, kIntegerType = 2, kNumberType = 4, kBooleanType = 8,
                         kNullType = 16, kObjectType = 32, kArrayType = 64;

// What `tools` (the request's, checked) say about one parameter of one function. `type`, `enum`, `anyOf`, `oneOf` and
// `allOf` count, and the type names that tools of other languages write (int, str, list[str] ...). kAnyType for unknown
// functions and parameters.
TypeSet parameter_types(const nlohmann::ordered_json& tools, std::string_view function, std::string_view parameter);

// The JSON of a value that the model wrote as `text`: of the first type that fits, as written; else a string. Nothing
// is guessed: "yes" is no boolean and 1.5 no integer. `untyped_is_json`: what kAnyType means, JSON if it is or a
// string.
std::string typed_value(std::string_view text, TypeSet types, bool untyped_is_json);

// `text` as part of a JSON string, without quotes. Works on any piece of UTF-8, cut anywhere.
std::string escape_json(std::string_view text);

bool is_json(std::string_view text);  // exactly one JSON text, not nested deeper than requests may be

}  // namespace moectl::api
