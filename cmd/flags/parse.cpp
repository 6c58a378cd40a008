// argv -> the text each flag was given. The only file that includes CLI11; it uses none of its typed values,
// environment or configuration files (2.1.2 lets a file win and reads no YAML).
#include <CLI/CLI.hpp>

#include "cmd/flags/flags.h"

namespace moectl {
namespace {

// "-h,--help", "--x,!--no-x", "--ep-size,..." as CLI11 wants them.
std::string cli_names(const Flag& flag) {
  std::string names =
      flag.short_name ? fmt::format("-{},--{}", flag.short_name, flag.name) : fmt::format("--{}", flag.name);
  for (std::string_view alias : flag.aliases) names += fmt::format(",--{}", alias);
  if (flag.negatable) names += fmt::format(",!--no-{}", flag.name);
  return names;
}

}  // namespace

ArgvResult parse_argv(const Command& command, const std::vector<std::string>& args) {
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  std::map<std::string_view, CLI::Option*> options, positionals;
  for (const Flag& flag : flags()) {
    if (!flag.belongs_to(command.name)) continue;
    if (flag.is_switch()) {
      options[flag.name] = app.add_flag(cli_names(flag));
    } else {
      options[flag.name] = app.add_option(cli_names(flag))->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
      if (flag.positional) positionals[flag.name] = app.add_option(std::string(flag.metavar));
    }
  }

  for (const std::string& arg : args) {  // CLI11 would take the next argument as the value of `--port=`
    if (arg == "--") break;
    if (arg.starts_with("--") && arg.ends_with("="))
      throw Error(Code::kUsage, fmt::format("{} has no value behind the `=`", arg.substr(0, arg.size() - 1)));
  }
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::ArgumentMismatch&) {
    // Options take one value each, so only the last argument can lack its value, and only a switch can have one too
    // many.
    const std::string name = args.back().substr(std::min(args.back().find_first_not_of('-'), args.back().size()));
    const Flag* flag = find_flag(command.name, name);
    if (!flag || flag->is_switch()) throw Error(Code::kUsage, fmt::format("{} takes no value", args.back()));
    throw Error(Code::kUsage, fmt::format("{} needs a value: {} {}", args.back(), args.back(), value_name(*flag)));
  } catch (const CLI::ParseError& error) {
    throw Error(Code::kUsage, error.what());
  }

  ArgvResult result;
  for (const std::string& extra : app.remaining())
    if (extra != "--") result.extra.push_back(extra);
  for (const Flag& flag : flags()) {
    if (!flag.belongs_to(command.name)) continue;
    GivenFlag given{&flag, {}};
    for (const std::string& text : options.at(flag.name)->results())
      given.values.push_back({text, fmt::format("--{}", flag.name), Code::kUsage});
    if (auto it = positionals.find(flag.name); it != positionals.end() && it->second->count() > 0) {
      const std::string value = it->second->results().front();
      // `--prot 8000`: the unknown flag is the fault, not its stray value.
      if (!given.values.empty() && result.extra.empty())
        throw Error(Code::kUsage, fmt::format("{} is given twice: `{}` and `--{} {}`", flag.metavar, value, flag.name,
                                              given.values.back().text));
      given.values.push_back({value, std::string(flag.metavar), Code::kUsage});
    }
    if (!given.values.empty()) result.given.emplace(flag.name, std::move(given));
  }
  return result;
}

}  // namespace moectl
