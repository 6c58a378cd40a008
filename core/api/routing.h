// What a router reads of bodies, fast and without a tree of values: of a request what routing needs, of an answer
// whether it is one. Everything else is the workers' to judge. Pure, any thread.
#pragma once

#include <string>
#include <string_view>

namespace moectl::api {

struct RoutingFields {
  std::string model, cache_salt;
  std::string prompt;  // roles and contents one after the other, as a chat template will put them; or the prompts
  bool stream = false;
  int choices = 1;  // n x prompts
};

// Fields of a type that a worker will refuse count as absent. Throws Error{kInvalidArgument} for what is not one JSON
// object: syntax, UTF-8, nesting over kMaxJsonDepth, a field read here that occurs twice.
RoutingFields read_routing_fields(std::string_view body);

// What is wrong with the body of a whole answer; empty: nothing. With `has_choices` it must have the list `choices`.
std::string answer_problem(std::string_view body, bool has_choices);

}  // namespace moectl::api
