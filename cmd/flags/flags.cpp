// Which command, which source wins (flag > environment > file), and what to say when a word is not known.
#include "cmd/flags/flags.h"

#include <fmt/format.h>
#include <algorithm>
#include <numeric>
#include <optional>

namespace moectl {
namespace {

std::string upper_name(std::string_view name) {
  std::string result(name);
  for (char& c : result) c = c == '-' ? '_' : char(std::toupper(static_cast<unsigned char>(c)));
  return result;
}

// Damerau-Levenshtein (adjacent letters swapped count once).
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates) {
  const std::string near = closest(word, candidates);
  return near.empty() ? "" : fmt::format(", did you mean `{}`?", near);
}

std::vector<std::string> visible_commands() {
  std::vector<std::string> names;
  for (const Command& command : commands())
    if (!command.hidden) names.emplace_back(command.name);
  return names;
}

// The command that the first words name, and how many words that took.
std::pair<const Command*, size_t> match_command(const std::vector<std::string>& args) {
  std::string words = args[0];
  if (const Command* command = find_command(words)) return {command, 1};
  std::vector<std::string> below;  // "bench" -> "bench engine"
  for (const std::string& name : visible_commands())
    if (name.starts_with(words + " ")) below.push_back(name);
  if (!below.empty()) {
    if (args.size() == 1 || args[1].starts_with("-"))
      throw Error(Code::kUsage,
                  fmt::format("`{}` needs one more word: `moectl {}`", words, fmt::join(below, "` or `moectl ")));
    words += fmt::format(" {}", args[1]);
    if (const Command* command = find_command(words)) return {command, 2};
    throw Error(Code::kUsage, fmt::format("unknown command `{}`{} `moectl --help` lists the commands", words,
                                          did_you_mean(words, below) + (closest(words, below).empty() ? ";" : "")));
  }
  const std::string hint = did_you_mean(words, visible_commands());
  throw Error(Code::kUsage, fmt::format("unknown command `{}`{} `moectl --help` lists the commands", words,
                                        hint.empty() ? ";" : hint));
}

[[noreturn]] void refuse_extra(const Command& command, const std::vector<std::string>& extra) {
  auto flag =
      std::find_if(extra.begin(), extra.end(), [](const std::string& s) { return s.size() > 1 && s[0] == '-'; });
  if (flag == extra.end())
    throw Error(Code::kUsage, fmt::format("unexpected argument `{}`; see `moectl {} --help`", extra[0], command.name));
  const std::string word = flag->substr(0, flag->find('='));
  const std::string hint = did_you_mean(word, flag_words(command.name));
  throw Error(Code::kUsage, fmt::format("`moectl {}` has no flag `{}`{} `moectl {} --help` lists its flags",
                                        command.name, word, hint.empty() ? ";" : hint, command.name));
}

bool has(const Given& given, std::string_view flag) {
  return given.find(flag) != given.end();
}

}  // namespace

const Command* find_command(std::string_view name) {
  for (const Command& command : commands())
    if (command.name == name) return &command;
  return nullptr;
}

const Flag* find_flag(std::string_view command, std::string_view name) {
  std::string wanted(name);
  std::replace(wanted.begin(), wanted.end(), '_', '-');
  for (const Flag& flag : flags()) {
    if (!flag.belongs_to(command)) continue;
    if (flag.name == wanted || std::find(flag.aliases.begin(), flag.aliases.end(), wanted) != flag.aliases.end())
      return &flag;
  }
  return nullptr;
}

std::vector<std::string> flag_words(std::string_view command) {
  std::vector<std::string> words;
  for (const Flag& flag : flags()) {
    if (!flag.belongs_to(command)) continue;
    words.push_back(fmt::format("--{}", flag.name));
    for (std::string_view alias : flag.aliases) words.push_back(fmt::format("--{}", alias));
    if (flag.negatable) words.push_back(fmt::format("--no-{}", flag.name));
  }
  return words;
}

std::string closest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 4) + 1;
  if (word.size() > 100) return best;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance && distance < candidate.size()) best = candidate, best_distance = distance;
  }
  if (best.empty() && word.size() >= 4)  // --max-model -> --max-model-len, serve -> serve-decode
    for (const std::string& candidate : candidates)
      if (candidate.starts_with(word)) return candidate;
  return best;
}

std::vector<std::string> environment_names(const Flag& flag) {
  if (flag.sources == Sources::kArgvOnly) return {};
  std::vector<std::string> names = {fmt::format("MOECTL_{}", upper_name(flag.name))};
  for (std::string_view alias : flag.aliases) names.push_back(fmt::format("MOECTL_{}", upper_name(alias)));
  for (std::string_view name : flag.environment) names.emplace_back(name);
  return names;
}

Given read_environment(const Command& command, const Environment& environment, std::vector<std::string>* warnings) {
  Given given;
  std::vector<std::string> known;
  for (const Flag& flag : flags()) {
    for (const std::string& name : environment_names(flag)) {
      known.push_back(name);
      auto it = environment.find(name);
      if (it == environment.end() || it->second.empty() || !flag.belongs_to(command.name) || has(given, flag.name))
        continue;
      // Kubernetes sets MOECTL_PORT=tcp://10.0.0.1:8000 in pods of a namespace with a service named moectl: not a port.
      if (it->second.starts_with("tcp://") || it->second.starts_with("udp://")) continue;
      const bool any_means_yes = flag.is_switch() && !name.starts_with("MOECTL_");  // NO_COLOR
      const std::string text(any_means_yes ? "true" : it->second);
      GivenFlag values{&flag, {}};
      if (std::holds_alternative<FieldOf<std::vector<std::string>>>(flag.target)) {
        for (size_t begin = 0; begin <= text.size();) {
          const size_t end = std::min(text.find(',', begin), text.size());
          values.values.push_back({text.substr(begin, end - begin), name, Code::kUsage});
          begin = end + 1;
        }
      } else {
        values.values.push_back({text, name, Code::kUsage});
      }
      given.emplace(flag.name, std::move(values));
    }
  }
  for (const auto& [name, value] : environment) {
    if (!name.starts_with("MOECTL_") || std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string near = closest(name, known);
    if (!near.empty())
      warnings->push_back(fmt::format("{} is set, but no flag reads it; did you mean {}?", name, near));
  }
  return given;
}

Invocation parse_command_line(const std::vector<std::string>& args, const Environment& environment) {
  Invocation result;
  if (args.empty() || args[0] == "--help" || args[0] == "-h" || (args[0] == "help" && args.size() == 1)) {
    result.text = short_help();
    return result;
  }
  if (args[0] == "--version") {
    result.text = version_line() + "\n";
    return result;
  }
  std::vector<std::string> words = args;
  if (words[0] == "help") {
    words.erase(words.begin());
    words.push_back("--help");
  }
  if (words[0].starts_with("-"))
    throw Error(Code::kUsage,
                fmt::format("`{}` stands before the command; write `moectl COMMAND {}`", words[0], words[0]));

  const auto [command, used] = match_command(words);
  ArgvResult argv = parse_argv(*command, {words.begin() + long(used), words.end()});
  if (has(argv.given, "help") || has(argv.given, "version")) {
    result.text = has(argv.given, "help") ? help_text(*command) : version_line() + "\n";
    return result;
  }
  if (!argv.extra.empty()) refuse_extra(*command, argv.extra);

  Given given = std::move(argv.given);
  given.merge(read_environment(*command, environment, &result.warnings));
  RawOptions raw;
  if (auto config = given.find("config"); config != given.end()) {
    set_value(raw, *config->second.flag, config->second.values);
    given.merge(read_config_file(*command, raw.config_file));
  }
  for (const auto& [name, flag] : given) set_value(raw, *flag.flag, flag.values);
  result.options = resolve(std::move(raw), *command, given);
  result.command = command;
  return result;
}

}  // namespace moectl
