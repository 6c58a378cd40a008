#include "cmd/deploy/deploy_file.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <map>

#include "cmd/flags/flags.h"
#include "cmd/yaml_file.h"

namespace moectl {
namespace {

// Walks a mapping; every key is named with its line in errors.
struct DeployReader {
  const std::string& path;

  std::string origin(const YAML::Node& key, const std::string& above) const {
    return fmt::format("{}:{}: {}{}", path, key.Mark().line + 1, above, key.Scalar());
  }
  void mapping(const YAML::Node& node, const std::string& above,
               const std::function<void(const std::string&, const YAML::Node&, const std::string&)>& take) const {
    if (node.IsNull()) return;
    if (!node.IsMap())
      throw Error(Code::kBadData, fmt::format("{}:{}: {}expected lines of the form `key: value`", path,
                                              node.Mark().line + 1, above.empty() ? "" : above + " "));
    std::vector<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar())
        throw Error(Code::kBadData, fmt::format("{}:{}: the key is not a word", path, entry.first.Mark().line + 1));
      const std::string key = entry.first.Scalar(), where = origin(entry.first, above);
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) throw Error(Code::kBadData, where + ": given twice");
      seen.push_back(key);
      take(key, entry.second, where);
    }
  }
  static std::string text(const YAML::Node& node, const std::string& where) {
    if (!node.IsScalar() || node.Scalar().empty()) throw Error(Code::kBadData, where + ": expected one value");
    return node.Scalar();
  }
  static int number(const YAML::Node& node, const std::string& where, int max, int min = 0) {
    const std::string value = text(node, where);
    int result = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    if (error != std::errc{} || end != value.data() + value.size() || result < min || result > max)
      throw Error(Code::kBadData, fmt::format("{}: '{}' is not a whole number from {} to {}", where, value, min, max));
    return result;
  }
  std::vector<DeployEntry> entries(const YAML::Node& node, const std::string& above) const {
    std::vector<DeployEntry> result;
    mapping(node, above, [&](const std::string& key, const YAML::Node& value, const std::string& where) {
      DeployEntry entry{key, {}, where};
      if (value.IsSequence())
        for (const YAML::Node& item : value) entry.values.push_back(text(item, where));
      else
        entry.values.push_back(text(value, where));
      if (entry.values.empty()) throw Error(Code::kBadData, where + ": expected a value");
      result.push_back(std::move(entry));
    });
    return result;
  }
  [[noreturn]] static void unknown(const std::string& key, const std::string& where,
                                   const std::vector<std::string>& known) {
    const std::string near = closest(key, known);
    throw Error(Code::kBadData,
                fmt::format("{}: unknown key{}; expected one of {}", where,
                            near.empty() ? "" : fmt::format(", did you mean `{}`?", near), fmt::join(known, ", ")));
  }
  DeployFileRole role(const YAML::Node& node, const std::string& above) const {
    DeployFileRole result;
    mapping(node, above, [&](const std::string& key, const YAML::Node& value, const std::string& where) {
      if (key == "instances")
        result.instances = number(value, where, 1000);
      else if (key == "flags")
        result.flags = entries(value, above + "flags.");
      else if (key == "environment")
        result.environment = entries(value, above + "environment.");
      else
        unknown(key, where, {"instances", "flags", "environment"});
    });
    return result;
  }
  DeployFile file(const YAML::Node& root) const {
    DeployFile result;
    mapping(root, "", [&](const std::string& key, const YAML::Node& value, const std::string& where) {
      const std::map<std::string, std::optional<std::string>*> texts = {
          {"name", &result.name},
          {"template", &result.template_name},
          {"model", &result.model},
          {"served_model_name", &result.served_model_name},
          {"host", &result.host}};
      const std::map<std::string, DeployFileRole*> roles = {
          {"router", &result.router}, {"prefill", &result.prefill}, {"decode", &result.decode}};
      if (const auto it = texts.find(key); it != texts.end())
        *it->second = text(value, where);
      else if (const auto of_role = roles.find(key); of_role != roles.end())
        *of_role->second = role(value, key + ".");
      else if (key == "port")
        result.port = number(value, where, 65535);
      else if (key == "unhealthy_timeout")
        result.unhealthy_timeout = number(value, where, 86400, 1);
      else
        unknown(key, where,
                {"name", "template", "model", "served_model_name", "host", "port", "unhealthy_timeout", "router",
                 "prefill", "decode"});
    });
    return result;
  }
};

}  // namespace

DeployFile read_deploy_file(const std::string& path) {
  DeployFile file;
  read_yaml_file("deployment file", path, [&](const YAML::Node& root) { file = DeployReader{path}.file(root); });
  return file;
}

}  // namespace moectl
