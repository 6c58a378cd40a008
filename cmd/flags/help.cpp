// --help, --version and the text that the man pages share with them. 100 columns, plain text.
#include <fmt/format.h>
#include <algorithm>

#include "cmd/flags/flags.h"

namespace moectl {
namespace {

constexpr int kWidth = 100, kFlagColumn = 36;

constexpr char kNoBreak = '\x01';  // stands for a space that wrap() must not break at

std::string unbroken(std::string text) {
  std::replace(text.begin(), text.end(), ' ', kNoBreak);
  return fmt::format(" {}", text);
}

std::string flag_entry(const Flag& flag) {
  const std::string syntax = fmt::format("  {}", flag_syntax(flag));
  std::string text(flag.help);
  if (const std::string value = default_text(flag); !value.empty())
    text += unbroken(fmt::format("[default: {}]", value));
  if (!flag.environment.empty()) text += unbroken(fmt::format("[env: {}]", fmt::join(flag.environment, ", ")));
  std::string body = wrap(text, kFlagColumn, kWidth - kFlagColumn);
  std::replace(body.begin(), body.end(), kNoBreak, ' ');
  if (int(syntax.size()) + 1 < kFlagColumn) return fmt::format("{:<{}}{}\n", syntax, kFlagColumn, body);
  return fmt::format("{}\n{:<{}}{}\n", syntax, "", kFlagColumn, body);
}

std::string usage_line(const Command& command) {
  std::string line = fmt::format("Usage: moectl {}", command.name);
  for (const Flag& flag : flags())
    if (flag.positional && flag.belongs_to(command.name)) line += fmt::format(" [{}]", flag.metavar);
  return line + " [flags]\n";
}

std::string examples_text(const std::vector<Example>& examples) {
  std::string text = "Examples\n";
  for (const Example& example : examples) text += fmt::format("  # {}\n  {}\n", example.what, example.line);
  return text;
}

}  // namespace

std::string wrap(std::string_view text, int indent, int width) {
  std::string result;
  int column = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (column > 0 && column + 1 + int(word.size()) > width) {
      result += fmt::format("\n{:<{}}", "", indent);
      column = 0;
    } else if (column > 0) {
      result += ' ';
      ++column;
    }
    result += word;
    column += int(word.size());
  }
  return result;
}

std::string value_name(const Flag& flag) {
  if (flag.is_switch()) return "";
  constexpr size_t kMaxShown = 60;  // more choices than fit a line go by the metavar
  const std::string choices = fmt::format("{}", fmt::join(flag.choices, "|"));
  return choices.empty() || choices.size() > kMaxShown ? std::string(flag.metavar) : choices;
}

std::string flag_syntax(const Flag& flag, bool with_short) {
  std::string text;
  if (with_short) text = flag.short_name ? fmt::format("-{}, ", flag.short_name) : "    ";
  text += fmt::format("--{}{}", flag.negatable ? "[no-]" : "", flag.name);
  for (std::string_view alias : flag.aliases) text += fmt::format(", --{}", alias);
  if (const std::string value = value_name(flag); !value.empty()) text += " " + value;
  return text;
}

std::string version_line() {
  return "moectl " MOECTL_VERSION;
}

std::string short_help() {
  std::string text =
      version_line() + ": serve Mixture-of-Experts language models\n\nUsage: moectl COMMAND [flags]\n\nCommands\n";
  for (const Command& command : commands())
    if (!command.hidden) text += fmt::format("  {:<16}{}\n", command.name, command.summary);
  text +=
      "\nFlags\n  -h, --help      Show this help; `moectl COMMAND --help` shows the flags of a command\n"
      "      --version   Show the version\n\n";
  text += examples_text(
      {{"moectl serve-decode --port 8000", "serve the demo model"},
       {"curl -s localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        "      -d '{\"model\": \"demo\", \"messages\": [{\"role\": \"user\", \"content\": \"What is 384 + 157?\"}]}'",
        "ask it"}});
  return text;
}

std::string help_text(const Command& command) {
  std::string text = fmt::format("{}\n\n{}\n{}\n", command.summary, usage_line(command), wrap(command.doc, 0, kWidth));
  for (std::string_view group : groups()) {
    std::string entries;
    for (const Flag& flag : flags())
      if (flag.group == group && flag.belongs_to(command.name)) entries += flag_entry(flag);
    if (!entries.empty()) text += fmt::format("\n{}\n{}", group, entries);
  }
  if (!command.hidden)
    text += "\n" +
            wrap(
                "Every flag is also read from the environment (--max-model-len from MOECTL_MAX_MODEL_LEN) and from the "
                "file of --config. A flag wins over the environment, the environment over the file.",
                0, kWidth) +
            "\n";
  return text + "\n" + examples_text(command.examples);
}

}  // namespace moectl
