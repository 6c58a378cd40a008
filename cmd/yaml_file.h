// Small YAML files that users write: --config, deployment files, --workers-file (JSON is YAML too).
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace YAML {
class Node;
}

namespace moectl {

// Reads the file and calls `take` with its root. Throws Error{kNotFound}, and Error{kBadData} with file and line for a
// file that is no YAML, also when that shows only while `take` reads. `what` names the file in messages: "--config".
void read_yaml_file(std::string_view what, const std::string& path,
                    const std::function<void(const YAML::Node& root)>& take);

}  // namespace moectl
