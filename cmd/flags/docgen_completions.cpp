// Completions for bash, zsh and fish from the tables of flags.h. Each knows the commands, the flags of each command,
// and for each flag what its value may be: a choice, a file, a folder or nothing. None needs more than the shell
// itself.
#include <fmt/format.h>
#include <algorithm>

#include "cmd/flags/flags.h"

namespace moectl {
namespace {

constexpr std::string_view kHead = "Written by `moectl docgen`; do not edit.";

std::vector<const Command*> visible() {
  std::vector<const Command*> result;
  for (const Command& command : commands())
    if (!command.hidden) result.push_back(&command);
  return result;
}

std::vector<const Flag*> flags_of(const Command& command) {
  std::vector<const Flag*> result;
  for (const Flag& flag : flags())
    if (flag.belongs_to(command.name)) result.push_back(&flag);
  return result;
}

std::string_view first_word(std::string_view name) {
  return name.substr(0, name.find(' '));
}
std::string_view second_word(std::string_view name) {
  const size_t space = name.find(' ');
  return space == name.npos ? "" : name.substr(space + 1);
}

// First words in order; several commands may share one ("bench engine").
std::vector<std::string_view> first_words() {
  std::vector<std::string_view> words;
  for (const Command* command : visible())
    if (std::find(words.begin(), words.end(), first_word(command->name)) == words.end())
      words.push_back(first_word(command->name));
  return words;
}

std::string word_summary(std::string_view word) {
  if (const Command* command = find_command(word)) return std::string(command->summary);
  std::vector<std::string_view> below;
  for (const Command* command : visible())
    if (first_word(command->name) == word) below.push_back(second_word(command->name));
  return fmt::format("{} {}", word, fmt::join(below, ", "));
}

std::vector<std::string> words_of(const Flag& flag) {  // without --no-
  std::vector<std::string> words = {fmt::format("--{}", flag.name)};
  for (std::string_view alias : flag.aliases) words.push_back(fmt::format("--{}", alias));
  return words;
}

std::string replaced(std::string_view text, char what, std::string_view by) {
  std::string result;
  for (char c : text) c == what ? result.append(by) : result.append(1, c);
  return result;
}

// ---------------------------------------------------------------------------------------------- zsh
std::string zsh_quote(std::string_view text) {
  return "'" + replaced(text, '\'', "'\\''") + "'";
}
std::string zsh_help(std::string_view text) {
  std::string result;
  for (char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

std::string zsh_value(const Flag& flag) {
  if (!flag.choices.empty()) return fmt::format(":{}:({})", flag.metavar, fmt::join(flag.choices, " "));
  if (flag.completes == Completes::kFile) return fmt::format(":{}:_files", flag.metavar);
  if (flag.completes == Completes::kFolder) return fmt::format(":{}:_path_files -/", flag.metavar);
  return fmt::format(":{}: ", flag.metavar);
}

std::string zsh_arguments(const Command& command, std::string_view indent) {
  std::string text = fmt::format("{}_arguments -S", indent);
  const auto add = [&](const std::string& spec) { text += fmt::format(" \\\n{}  {}", indent, zsh_quote(spec)); };
  for (const Flag* flag : flags_of(command)) {
    const std::string help = zsh_help(flag->help), many = flag->is_list() ? "*" : "";
    if (flag->is_switch()) {
      if (flag->short_name) add(fmt::format("-{}[{}]", flag->short_name, help));
      add(fmt::format("--{}[{}]", flag->name, help));
      if (flag->negatable) add(fmt::format("--no-{}[Not: {}]", flag->name, help));
    } else {
      for (const std::string& word : words_of(*flag))
        add(fmt::format("{}{}=[{}]{}", many, word, help, zsh_value(*flag)));
      if (flag->positional) add(fmt::format(":{}:_path_files -/", flag->metavar));
    }
  }
  return text + "\n";
}

// ---------------------------------------------------------------------------------------------- fish
std::string fish_quote(std::string_view text) {
  return "'" + replaced(replaced(text, '\\', "\\\\"), '\'', "\\'") + "'";
}

std::string fish_flag(const Command& command, const Flag& flag) {
  std::string text;
  const auto add = [&](std::string_view name, std::string_view rest, std::string_view help) {
    text += fmt::format("complete -c moectl -n {} -l {}{} -d {}\n",
                        fish_quote(fmt::format("__moectl_is {}", command.name)), name, rest, fish_quote(help));
  };
  std::string value = " -x";
  if (flag.is_switch())
    value = flag.short_name ? fmt::format(" -s {}", flag.short_name) : "";
  else if (!flag.choices.empty())
    value = " -x -a " + fish_quote(fmt::format("{}", fmt::join(flag.choices, " ")));
  else if (flag.completes == Completes::kFile)
    value = " -r -F";
  else if (flag.completes == Completes::kFolder)
    value = " -x -a '(__fish_complete_directories)'";
  for (const std::string& word : words_of(flag)) add(std::string_view(word).substr(2), value, flag.help);
  if (flag.negatable) add(fmt::format("no-{}", flag.name), "", fmt::format("Not: {}", flag.help));
  return text;
}

}  // namespace

std::string bash_completion() {
  std::string text = fmt::format("# bash completion for moectl. {}\n", kHead);
  text += R"(
_moectl() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words='' kind=''
  COMPREPLY=()
  # bash splits --device=cpu at the equals sign.
  if [[ $cur == '=' ]]; then
    cur=''
  elif [[ $prev == '=' ]]; then
    prev=${COMP_WORDS[COMP_CWORD-2]}
  fi
)";
  text += fmt::format(
      "  if (( COMP_CWORD == 1 )); then\n    mapfile -t COMPREPLY < <(compgen -W '{} --help --version' -- \"$cur\")\n  "
      "  return\n  fi\n",
      fmt::join(first_words(), " "));
  for (std::string_view word : first_words()) {
    if (find_command(word)) continue;
    std::vector<std::string_view> below;
    for (const Command* command : visible())
      if (first_word(command->name) == word) below.push_back(second_word(command->name));
    text += fmt::format(
        "  if [[ $command == {} ]]; then\n    if (( COMP_CWORD == 2 )); then\n"
        "      mapfile -t COMPREPLY < <(compgen -W '{}' -- \"$cur\")\n      return\n    fi\n"
        "    command=\"{} ${{COMP_WORDS[2]}}\"\n  fi\n",
        word, fmt::join(below, " "), word);
  }
  text += "  # The value of a flag.\n  case \"$command:$prev\" in\n";
  for (const Command* command : visible())
    for (const Flag* flag : flags_of(*command)) {
      if (flag->is_switch()) continue;
      std::vector<std::string> patterns;
      for (const std::string& word : words_of(*flag)) patterns.push_back(fmt::format("'{}:{}'", command->name, word));
      std::string action = "return";
      if (!flag->choices.empty()) action = fmt::format("words='{}'", fmt::join(flag->choices, " "));
      if (flag->completes == Completes::kFile) action = "kind='file'";
      if (flag->completes == Completes::kFolder) action = "kind='folder'";
      text += fmt::format("    {}) {} ;;\n", fmt::join(patterns, "|"), action);
    }
  text +=
      "  esac\n  # A flag, or the positional argument.\n  if [[ -z $words$kind ]]; then\n    case \"$command\" in\n";
  for (const Command* command : visible()) {
    std::vector<std::string> words = flag_words(command->name);
    bool positional = false;
    for (const Flag* flag : flags_of(*command)) {
      positional |= flag->positional;
      if (flag->short_name) words.push_back(fmt::format("-{}", flag->short_name));
    }
    text += fmt::format("      '{}')\n        words='{}'\n", command->name, fmt::join(words, " "));
    if (positional) text += "        [[ $cur == -* ]] || kind='folder'\n";
    text += "        ;;\n";
  }
  return text + R"(    esac
  fi
  case "$kind" in
    file) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    folder) mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur") ;;
  esac
  [[ -z $kind ]] || compopt -o filenames 2>/dev/null
}
complete -F _moectl moectl
)";
}

std::string zsh_completion() {
  std::string text = fmt::format("#compdef moectl\n# zsh completion for moectl. {}\n\n_moectl() {{\n", kHead);
  text +=
      "  local context state state_descr line\n  typeset -A opt_args\n  local -a words_\n"
      "  _arguments -C -S '(-h --help)'{-h,--help}'[Show this help]' '--version[Show the version]' '1: :->command' "
      "'*:: :->rest'\n"
      "  case $state in\n    command)\n      words_=(";
  for (std::string_view word : first_words())
    text += fmt::format("\n        {}", zsh_quote(fmt::format("{}:{}", word, zsh_help(word_summary(word)))));
  text += "\n      )\n      _describe command words_\n      ;;\n    rest)\n      case $words[1] in\n";
  for (std::string_view word : first_words()) {
    text += fmt::format("        {})\n", word);
    if (const Command* command = find_command(word)) {
      text += zsh_arguments(*command, "          ");
    } else {
      text +=
          "          _arguments -C -S '1: :->second' '*:: :->below'\n          case $state in\n            second)\n   "
          "           words_=(";
      for (const Command* command : visible())
        if (first_word(command->name) == word)
          text += fmt::format("\n                {}",
                              zsh_quote(fmt::format("{}:{}", second_word(command->name), zsh_help(command->summary))));
      text +=
          "\n              )\n              _describe command words_\n              ;;\n            below)\n           "
          "   case $words[1] in\n";
      for (const Command* command : visible())
        if (first_word(command->name) == word)
          text += fmt::format("                {})\n{}                  ;;\n", second_word(command->name),
                              zsh_arguments(*command, "                  "));
      text += "              esac\n              ;;\n          esac\n";
    }
    text += "          ;;\n";
  }
  return text +
         "      esac\n      ;;\n  esac\n}\n\n"
         "if [[ $funcstack[1] == _moectl ]]; then\n  _moectl \"$@\"\nelse\n  compdef _moectl moectl\nfi\n";
}

std::string fish_completion() {
  std::string text = fmt::format("# fish completion for moectl. {}\n", kHead);
  text += R"(
# True when the words typed so far begin with the given command.
function __moectl_is
    set -l typed (commandline -opc)
    set -l last (math 1 + (count $argv))
    test (count $typed) -ge $last; and test "$typed[2..$last]" = "$argv"
end
function __moectl_words
    test (count (commandline -opc)) -eq $argv[1]
end

complete -c moectl -f
complete -c moectl -n '__moectl_words 1' -s h -l help -d 'Show this help'
complete -c moectl -n '__moectl_words 1' -l version -d 'Show the version'
)";
  for (std::string_view word : first_words())
    text += fmt::format("complete -c moectl -n '__moectl_words 1' -a {} -d {}\n", word, fish_quote(word_summary(word)));
  for (const Command* command : visible()) {
    if (const std::string_view second = second_word(command->name); !second.empty())
      text += fmt::format("complete -c moectl -n '__moectl_words 2; and __moectl_is {}' -a {} -d {}\n",
                          first_word(command->name), second, fish_quote(command->summary));
    for (const Flag* flag : flags_of(*command)) {
      text += fish_flag(*command, *flag);
      if (flag->positional)
        text += fmt::format("complete -c moectl -n {} -a '(__fish_complete_directories)'\n",
                            fish_quote(fmt::format("__moectl_is {}", command->name)));
    }
  }
  return text;
}

}  // namespace moectl
