// Values of the Jinja interpreter, and the Context that bounds one rendering. Values are immutable and shared, except
// namespaces, loops and joiners, which only the rendering thread touches. Containers know how deep they nest, so every
// walk over a value is bounded. Failures are Error{kInvalidArgument} without a place; ChatTemplate adds the template's
// line.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/jinja/str.h"

namespace moectl::jinja {

struct List;
struct Dict;
struct Namespace;
struct Loop;
struct Callable;
struct Stmt;
class Value;

[[noreturn]] void fail(std::string message);

struct Undefined {
  std::shared_ptr<const std::string> reason;  // "'x' is undefined"; null for a plain undefined value
};
struct None {};
using StrPtr = std::shared_ptr<const Str>;
using ListPtr = std::shared_ptr<const List>;
using DictPtr = std::shared_ptr<const Dict>;
using LoopPtr = std::shared_ptr<Loop>;
using CallablePtr = std::shared_ptr<Callable>;

class Value {
 public:
  enum class Type { kUndefined, kNone, kBool, kInt, kReal, kString, kList, kDict, kNamespace, kLoop, kCallable };

  Value() = default;  // undefined
  explicit Value(None) : v_(None{}) {}
  explicit Value(bool b) : v_(b) {}
  explicit Value(int64_t i) : v_(i) {}
  explicit Value(double d) : v_(d) {}
  explicit Value(Str s) : v_(std::make_shared<const Str>(std::move(s))) {}
  explicit Value(ListPtr l) : v_(std::move(l)) {}
  explicit Value(DictPtr d) : v_(std::move(d)) {}
  explicit Value(Namespace* n) : v_(n) {}
  explicit Value(LoopPtr l) : v_(std::move(l)) {}
  explicit Value(CallablePtr c) : v_(std::move(c)) {}
  static Value undefined(std::string reason);

  Type type() const { return static_cast<Type>(v_.index()); }
  bool is(Type t) const { return type() == t; }
  bool is_undefined() const { return is(Type::kUndefined); }
  bool is_none() const { return is(Type::kNone); }
  bool is_string() const { return is(Type::kString); }
  bool is_list() const { return is(Type::kList); }
  bool is_dict() const { return is(Type::kDict); }
  bool is_integer() const { return is(Type::kInt) || is(Type::kBool); }  // Python: bool is an int
  bool is_number() const { return is_integer() || is(Type::kReal); }

  bool boolean() const { return std::get<bool>(v_); }
  int64_t integer() const { return is(Type::kBool) ? int64_t{boolean()} : std::get<int64_t>(v_); }
  double real() const { return is(Type::kReal) ? std::get<double>(v_) : static_cast<double>(integer()); }
  const Str& str() const { return *std::get<StrPtr>(v_); }
  const std::string& text() const { return str().text(); }
  ListPtr list_ptr() const { return std::get<ListPtr>(v_); }
  const List& list() const { return *std::get<ListPtr>(v_); }
  const Dict& dict() const { return *std::get<DictPtr>(v_); }
  Namespace& ns() const { return *std::get<Namespace*>(v_); }
  LoopPtr loop_ptr() const { return std::get<LoopPtr>(v_); }
  Loop& loop() const { return *std::get<LoopPtr>(v_); }
  Callable& callable() const { return *std::get<CallablePtr>(v_); }
  const std::string* undefined_reason() const { return std::get<Undefined>(v_).reason.get(); }
  bool same_object(const Value& other) const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, StrPtr, ListPtr, DictPtr, Namespace*, LoopPtr, CallablePtr> v_;
};

// Python's list and its relatives, which print and index differently.
enum class Sequence { kList, kTuple, kRange, kView, kIterator };
struct List {
  Sequence kind = Sequence::kList;
  std::vector<Value> items;
  int depth = 1;
  mutable bool consumed = false;  // kIterator: a generator gives its items once
  bool is_group = false;          // kTuple of groupby: its items are also `grouper` and `list`
};
struct Dict {
  std::vector<std::pair<Value, Value>> entries;  // insertion order
  int depth = 1;
};
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};
// A block's variables as a macro or a recursive loop sees them later: valid while the block runs.
struct ScopeRef {
  size_t position = 0;
  uint64_t id = 0;
};
struct Loop {
  ListPtr items;
  size_t index = 0;            // from 0
  int depth0 = 0;              // calls of a recursive loop around this one
  const Stmt* stmt = nullptr;  // of a recursive loop: what loop(items) runs
  ScopeRef scope{};            // and where
  std::vector<Value> last_changed;
  bool changed_called = false;
};

// What one rendering may still use, and what it owns. Natives report the work they are about to do before they do it.
class Context {
 public:
  Context(int64_t max_steps, size_t max_bytes, int max_depth)
      : max_depth(max_depth), steps_left_(max_steps), max_bytes_(max_bytes) {}

  void step(int64_t n = 1) {
    if (n > steps_left_) out_of_steps();
    steps_left_ -= n;
  }
  void check_size(size_t n) {
    if (n > max_bytes_) string_too_long(n);
  }
  void bytes(size_t n) { step(1 + static_cast<int64_t>(n / kBytesPerStep)); }  // n bytes will be read or copied
  // A new string of n bytes: refused above the output limit.
  void new_string(size_t n) {
    check_size(n);
    bytes(n);
  }
  Namespace* new_namespace() { return &namespaces_.emplace_back(); }

  // Natives that call natives (map, select and their kin) nest no deeper than max_depth.
  class Nested {
   public:
    explicit Nested(Context& ctx) : ctx_(ctx) {
      if (ctx.nested_ >= ctx.max_depth) fail("filters and tests call each other too deeply");
      ++ctx.nested_;
    }
    ~Nested() { --ctx_.nested_; }

   private:
    Context& ctx_;
  };

  static constexpr int64_t kBytesPerStep = 64;
  const int max_depth;

 private:
  [[noreturn]] void out_of_steps();
  [[noreturn]] void string_too_long(size_t n);

  int64_t steps_left_;
  size_t max_bytes_;
  int nested_ = 0;
  std::deque<Namespace> namespaces_;  // live until the rendering ends, so a namespace may contain itself
};

// Arguments of a call, filter or test.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};
using Native = Value (*)(Context&, const Value& self, Args& args);

struct Callable {
  std::string name;         // for messages
  Native native = nullptr;  // a global function or a bound method (self is its object)
  Value self;
  const Stmt* macro = nullptr;  // or a macro
  ScopeRef scope{};             // and the block that defines it
  bool stateful = false;        // joiner: called with itself as `self`
  bool used = false;            // and whether it was called before
};

void check_hashable(const Value& key);  // fails for lists and dicts: they are no keys
Value make_string(Context& ctx, std::string text, bool trusted = false);
Value make_list(Context& ctx, std::vector<Value> items, Sequence kind = Sequence::kList);
Value make_dict(Context& ctx, std::vector<std::pair<Value, Value>> entries);

const char* type_name(const Value& v);  // as Python names it
bool truthy(const Value& v);
bool equals(Context& ctx, const Value& a, const Value& b);
int compare(Context& ctx, const Value& a, const Value& b);  // <0, 0, >0; 2 when a NaN makes them unordered
bool contains(Context& ctx, const Value& container, const Value& item);
const Value* find(Context& ctx, const Dict& dict, const Value& key);
const Value* find(Context& ctx, const Dict& dict, std::string_view key);
// The items a `for` would see: list items, dict keys, characters of a string; nothing for undefined.
ListPtr iterate(Context& ctx, const Value& v);
size_t length(Context& ctx, const Value& v);

// str(v) and repr(v) of Python. Text of numbers, booleans and None and the punctuation of containers is untrusted: it
// may be the request's, and no control token needs it.
Str to_str(Context& ctx, const Value& v);
Str to_repr(Context& ctx, const Value& v);
std::string format_real(double d);

// A JSON value of the request; strings get the origin `trusted`.
Value from_json(const nlohmann::ordered_json& json, bool trusted, int max_depth);
Value from_json(const nlohmann::json& json, bool trusted, int max_depth);

}  // namespace moectl::jinja
