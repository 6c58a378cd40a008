// --config FILE.yaml: a mapping from flag names to values; and the files of `moectl deploy up`. An entry that is not
// known stops the start with file, line, key and the nearest flag: a silently ignored setting is worse.
#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <functional>

#include "cmd/deploy/deploy.h"
#include "cmd/flags/flags.h"

namespace moectl {
namespace {

constexpr std::uintmax_t kMaxFileBytes = 1 << 20;

// `what`: "--config", for messages.
std::string read_text(const std::string& what, const std::string& path) {
  std::error_code failed;
  const std::filesystem::file_status status = std::filesystem::status(path, failed);
  if (!std::filesystem::exists(status)) throw Error(Code::kNotFound, fmt::format("{} {}: no such file", what, path));
  if (std::filesystem::is_directory(status))
    throw Error(Code::kBadData, fmt::format("{} {}: is a folder, expected a YAML file", what, path));
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), std::streamsize(text.size()));
  text.resize(size_t(file.gcount()));
  if (file.bad() || (!file.eof() && text.size() <= kMaxFileBytes))
    throw Error(Code::kBadData, fmt::format("{} {}: cannot be read; check its permissions", what, path));
  if (text.size() > kMaxFileBytes) throw Error(Code::kBadData, fmt::format("{} {}: is larger than 1 MiB", what, path));
  return text;
}

std::string unknown_key(const Command& command, const std::string& where, const std::string& key) {
  for (const Flag& flag : flags()) {
    if (find_flag(flag.commands.front(), key) != &flag) continue;
    return fmt::format("{}: `{}` is a flag of `moectl {}`, not of `moectl {}`", where, key,
                       fmt::join(flag.commands, "` and `moectl "), command.name);
  }
  std::vector<std::string> names;
  for (const std::string& word : flag_words(command.name)) names.push_back(word.substr(2));
  std::string dashed = key;
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  const std::string near = closest(dashed, names);
  return fmt::format("{}: unknown key `{}`{}", where, key,
                     near.empty() ? fmt::format("; `moectl {} --help` lists the flags", command.name)
                                  : fmt::format(", did you mean `{}`?", near));
}

Given read_mapping(const Command& command, const std::string& path, const YAML::Node& root) {
  Given given;
  if (root.IsNull()) return given;  // an empty file
  if (!root.IsMap())
    throw Error(Code::kBadData,
                fmt::format("{}:{}: expected lines of the form `port: 8000`", path, root.Mark().line + 1));
  for (const auto& entry : root) {
    const std::string where = fmt::format("{}:{}", path, entry.first.Mark().line + 1);
    if (!entry.first.IsScalar()) throw Error(Code::kBadData, fmt::format("{}: the key is not a word", where));
    const std::string key = entry.first.Scalar();
    const Flag* flag = find_flag(command.name, key);
    if (!flag) throw Error(Code::kBadData, unknown_key(command, where, key));
    if (flag->sources != Sources::kAll)
      throw Error(Code::kBadData, fmt::format("{}: `{}` can only be given on the command line", where, key));

    const std::string origin = fmt::format("{}: {}", where, key);
    GivenFlag values{flag, {}};
    if (entry.second.IsScalar()) {
      values.values.push_back({entry.second.Scalar(), origin, Code::kBadData});
    } else if (entry.second.IsSequence() && flag->is_list()) {
      for (const YAML::Node& item : entry.second) {
        if (!item.IsScalar()) throw Error(Code::kBadData, fmt::format("{}: expected a list of plain values", origin));
        values.values.push_back({item.Scalar(), origin, Code::kBadData});
      }
    }
    if (values.values.empty())
      throw Error(Code::kBadData, fmt::format("{}: expected {}", origin,
                                              flag->is_list() ? "a value or a list of values" : "one value"));
    auto [first, inserted] = given.emplace(flag->name, std::move(values));
    if (!inserted)
      throw Error(Code::kBadData, fmt::format("{}: given twice, first at {}", origin, first->second.values[0].origin));
  }
  return given;
}

// ---------------------------------------------------------------------------------------------- deployment files
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
      const std::map<std::string, std::string*> texts = {{"name", &result.name},
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

[[noreturn]] void refuse_yaml(const std::string& path, const YAML::Exception& error) {
  const std::string where = error.mark.is_null() ? path : fmt::format("{}:{}", path, error.mark.line + 1);
  throw Error(Code::kBadData, fmt::format("{}: not YAML: {}", where, error.msg));
}

}  // namespace

DeployFile read_deploy_file(const std::string& path) {
  const std::string text = read_text("deployment file", path);
  try {
    return DeployReader{path}.file(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    refuse_yaml(path, error);
  }
}

Given read_config_file(const Command& command, const std::string& path) {
  const std::string text = read_text("--config", path);
  try {
    return read_mapping(command, path, YAML::Load(text));
  } catch (const YAML::Exception& error) {
    refuse_yaml(path, error);
  }
}

}  // namespace moectl
