// --config FILE.yaml: a mapping from flag names to values. An entry that is not known stops the start with file, line,
// key and the nearest flag: a silently ignored setting is worse.
#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "cmd/flags/flags.h"
#include "cmd/yaml_file.h"

namespace moectl {
namespace {

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

}  // namespace

Given read_config_file(const Command& command, const std::string& path) {
  Given given;
  read_yaml_file("--config", path, [&](const YAML::Node& root) { given = read_mapping(command, path, root); });
  return given;
}

}  // namespace moectl
