// Which handler serves a method and path. Written before the server starts, read-only afterwards; any thread may read.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/http/server.h"

namespace moectl::http {

class RouteTable {
 public:
  // Exact path, or everything below a prefix when it ends in "/*"; the longest prefix wins, an exact path before it.
  void add(std::string method, std::string path, Handler handler);
  struct Match {
    const Handler* handler = nullptr;  // null: path unknown (allow empty) or method not allowed
    std::string allow;                 // the methods the path knows, for 405
  };
  Match find(std::string_view method, std::string_view path) const;

 private:
  using Methods = std::map<std::string, Handler, std::less<>>;
  const Methods* find_path(std::string_view path) const;
  std::map<std::string, Methods, std::less<>> exact_;
  std::map<std::string, Methods, std::less<>> prefixes_;  // with the final '/'
};

}  // namespace moectl::http
