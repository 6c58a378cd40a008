// What templates can call: filters, tests, methods of strings, dicts and lists, and global functions. Each is a Native;
// the tables that name them stand at the end of the file that defines them.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "core/jinja/value.h"

namespace moectl::jinja {

// Null when there is no such function.
Native find_filter(std::string_view name);
Native find_string_method(std::string_view name, bool on_markup);
Native find_sequence_filter(std::string_view name);  // the part of find_filter's table that walks sequences
Native find_test(std::string_view name);
Native find_global(std::string_view name);

// obj.name and obj[key] as Jinja resolves them: an attribute, then an item, then undefined (or the other way round).
Value get_attribute(Context& ctx, const Value& object, const std::string& name);
Value get_item(Context& ctx, const Value& object, const Value& key);
// The method `name` bound to `object`; undefined when Python's type has none that the sandbox allows.
Value find_method(const Value& object, std::string_view name);
// A method that would change its object: the immutable sandbox hides it, and an item of that name with it.
bool is_refused_method(const Value& object, std::string_view name);
Value get_loop_attribute(const LoopPtr& loop, const std::string& name);

// Arguments by position, null where not given. Fails for unknown, doubled and surplus arguments.
using Bound = std::vector<const Value*>;
Bound bind(const Args& args, std::string_view function, std::initializer_list<std::string_view> parameters);
int64_t integer_argument(const Value& v, std::string_view what);
const Str& string_argument(const Value& v, std::string_view what);

// Shared by filters and methods.
Value replace_text(Context& ctx, const Str& s, const Str& from, const Str& to, int64_t count);
Value join_text(Context& ctx, const std::vector<Value>& items, const Str& separator, bool convert);
Value add_text(Context& ctx, const Str& a, const Str& b);
Str escape_text(Context& ctx, const Str& s);
Value repeat_text(Context& ctx, const Str& s, int64_t count);
Value pad_text(Context& ctx, const Str& s, int64_t left, int64_t right, const Str& fill);
std::vector<Str> split_lines(Context& ctx, const Str& s, bool keep_ends = false);

// Formats, in jinja_format.cpp. `values`: a tuple, one value, or a mapping for %(name)s.
Value printf_text(Context& ctx, const Str& format, const Value& values);
Value str_format(Context& ctx, const Value& self, Args& args);

Value filter_tojson(Context& ctx, const Value& self, Args& args);

}  // namespace moectl::jinja
