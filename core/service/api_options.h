// Where a serving process of any role listens, and who may ask it for what. Plain data, resolved: the command line, the
// worker service and the router share it.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace moectl {

struct ApiOptions {
  std::string version;  // GET /version
  std::string host = "127.0.0.1";
  int port = 0;  // data port; 0: the system picks one
  std::string ops_host = "127.0.0.1";
  std::optional<int> ops_port;            // operations and administration; nullopt: none; 0: the system picks one
  std::vector<std::string> api_keys;      // any is accepted on the data port; empty: no authentication. Never logged
  bool metrics_without_key = false;       // on the data port
  bool debug_header = true;               // x-moectl-debug counts from any client; on a worker the router's always does
  std::string ssl_certfile, ssl_keyfile;  // both or none
};

}  // namespace moectl
