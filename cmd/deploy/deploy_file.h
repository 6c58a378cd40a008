// The deployment file of `moectl deploy up FILE`, as written: what it does not say is empty.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace moectl {

// One entry of a mapping in the file, and where it stands ("FILE:12: decode.flags.max-num-seqs").
struct DeployEntry {
  std::string key;
  std::vector<std::string> values;
  std::string origin;
};
struct DeployFileRole {
  std::optional<int> instances;
  std::vector<DeployEntry> flags, environment;
};
struct DeployFile {
  std::optional<std::string> name, template_name, model, served_model_name, host;
  std::optional<int> port, unhealthy_timeout;  // seconds
  DeployFileRole router, prefill, decode;
};
// Throws Error{kNotFound, kBadData} that name file, line and key.
DeployFile read_deploy_file(const std::string& path);

}  // namespace moectl
