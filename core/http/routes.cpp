#include "core/http/routes.h"

#include "core/base/check.h"

namespace moectl::http {

void RouteTable::add(std::string method, std::string path, Handler handler) {
  CHECK(path.starts_with('/') && handler, "route `{} {}` needs an absolute path and a handler", method, path);
  bool prefix = path.ends_with("/*");
  if (prefix) path.pop_back();
  bool added = (prefix ? prefixes_ : exact_)[path].emplace(method, std::move(handler)).second;
  CHECK(added, "route `{} {}` is defined twice", method, path);
}

const RouteTable::Methods* RouteTable::find_path(std::string_view path) const {
  if (auto it = exact_.find(path); it != exact_.end()) return &it->second;
  if (prefixes_.empty()) return nullptr;
  for (size_t slash = path.rfind('/'); slash != std::string_view::npos; slash = path.rfind('/', slash - 1)) {
    if (auto it = prefixes_.find(path.substr(0, slash + 1)); it != prefixes_.end()) return &it->second;
    if (slash == 0) break;
  }
  return nullptr;
}

RouteTable::Match RouteTable::find(std::string_view method, std::string_view path) const {
  const Methods* methods = find_path(path);
  if (!methods) return {};
  auto it = methods->find(method);
  if (it == methods->end() && method == "HEAD") it = methods->find("GET");
  if (it != methods->end()) return {&it->second, {}};
  Match match;
  for (const auto& [name, handler] : *methods) {
    match.allow += (match.allow.empty() ? "" : ", ") + name;
    if (name == "GET" && !methods->contains("HEAD")) match.allow += ", HEAD";
  }
  return match;
}

}  // namespace moectl::http
