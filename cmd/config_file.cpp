// --config FILE.yaml: a mapping from flag names to values. The only file that includes yaml-cpp. An entry that is no
// flag of the command stops the start with file, line, key and the nearest flag: a silently ignored setting is worse.
#include <yaml-cpp/yaml.h>

#include <algorithm>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "cmd/flags.h"

namespace moectl {
namespace {

constexpr std::uintmax_t kMaxFileBytes = 1 << 20;

std::string read_text(const std::string& path) {
  std::error_code failed;
  const std::filesystem::file_status status = std::filesystem::status(path, failed);
  if (!std::filesystem::exists(status)) throw Error(Code::kNotFound, fmt::format("--config {}: no such file", path));
  if (std::filesystem::is_directory(status))
    throw Error(Code::kBadData, fmt::format("--config {}: is a folder, expected a YAML file", path));
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), std::streamsize(text.size()));
  text.resize(size_t(file.gcount()));
  if (file.bad() || (!file.eof() && text.size() <= kMaxFileBytes))
    throw Error(Code::kBadData, fmt::format("--config {}: cannot be read; check its permissions", path));
  if (text.size() > kMaxFileBytes) throw Error(Code::kBadData, fmt::format("--config {}: is larger than 1 MiB", path));
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

}  // namespace

Given read_config_file(const Command& command, const std::string& path) {
  const std::string text = read_text(path);
  try {
    return read_mapping(command, path, YAML::Load(text));
  } catch (const YAML::Exception& error) {
    const std::string where = error.mark.is_null() ? path : fmt::format("{}:{}", path, error.mark.line + 1);
    throw Error(Code::kBadData, fmt::format("{}: not YAML: {}", where, error.msg));
  }
}

}  // namespace moectl
