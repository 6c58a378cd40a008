// `moectl docgen`: man pages and completions from the tables of flags.h. They are committed, so that packages need no
// run of the binary, and a test compares them (--check).
#include <fmt/format.h>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "cmd/flags/flags.h"

namespace moectl {
namespace {

namespace fs = std::filesystem;

// mdoc text: a backslash or a leading dot or quote would be read as a request.
std::string escape(std::string_view text) {
  std::string result;
  for (char c : text) {
    if (c == '\\')
      result += "\\e";
    else if (c == '-')
      result += "\\-";
    else if (c == '\'')
      result += "\\(aq";
    else if (c == '`')
      result += "\\(ga";
    else
      result += c;
  }
  return result.starts_with(".") ? fmt::format("\\&{}", result) : result;
}

std::string argument(std::string_view text) {  // of a macro: quoted, so that no word is taken as another macro
  std::string quoted;
  for (char c : escape(text)) quoted += c == '"' ? std::string("\\(dq") : std::string(1, c);
  return '"' + quoted + '"';
}

// Each sentence starts a line, and no line is longer than 78 bytes, as mandoc wants it. A line must not start with a
// dot.
std::string sentences(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const size_t end = text.find(". ");
    const std::string_view sentence = text.substr(0, end == text.npos ? end : end + 1);
    std::string lines = wrap(escape(sentence), 0, 78);
    for (size_t at = 0; (at = lines.find("\n.", at)) != lines.npos; at += 3) lines.insert(at + 1, "\\&");
    result += lines + "\n";
    text.remove_prefix(std::min(sentence.size() + 1, text.size()));
  }
  return result;
}

std::string page_name(const Command& command) {
  std::string name = fmt::format("moectl-{}", command.name);
  for (char& c : name)
    if (c == ' ') c = '-';
  return name;
}

std::string upper(std::string text) {
  for (char& c : text) c = char(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

std::string page_head(const std::string& name, std::string_view summary) {
  // No date of today: the file would change with every run.
  return fmt::format(
      ".\\\" Written by `moectl docgen`; do not edit.\n.Dd $Mdocdate$\n.Dt {} 1\n.Os\n.Sh NAME\n.Nm {}\n.Nd "
      "{}\n",
      upper(name), name, escape(summary));
}

std::string flag_item(const Flag& flag) {
  std::string text = fmt::format(".It Xo\n.Sy {}\n.Xc\n", argument(flag_syntax(flag, flag.short_name != 0)));
  text += sentences(fmt::format("{}.", flag.help));
  if (!flag.doc.empty()) text += sentences(flag.doc);
  if (!flag.choices.empty() && value_name(flag) == flag.metavar)
    text += sentences(fmt::format("Choices: {}.", fmt::join(flag.choices, ", ")));
  if (const std::string value = default_text(flag); !value.empty())
    text += sentences(fmt::format("Default: {}.", value));
  if (const auto names = environment_names(flag); !names.empty())
    text += sentences(fmt::format("Environment: {}.", fmt::join(names, ", ")));
  return text;
}

std::string examples_section(const std::vector<Example>& examples) {
  std::string text = ".Sh EXAMPLES\n";
  for (const Example& example : examples)
    text += fmt::format("{}{}:\n.Pp\n.Dl {}\n", text.ends_with("EXAMPLES\n") ? "" : ".Pp\n", escape(example.what),
                        escape(example.line));
  return text;
}

std::string exit_section() {
  return ".Sh EXIT STATUS\n.Bl -tag -width 4n\n"
         ".It 0\nDone.\n.It 1\nFailed; also when the port is in use.\n.It 2\nThe command line cannot be understood.\n"
         ".It 65\nThe checkpoint or the configuration file is unusable.\n.It 69\nA peer is unavailable.\n"
         ".It 78\nFlags contradict each other, or one is missing.\n.It 130\nInterrupted with Ctrl\\-C.\n.El\n";
}

std::string command_page(const Command& command) {
  std::string text = page_head(page_name(command), command.summary) +
                     fmt::format(".Sh SYNOPSIS\n.Nm moectl {}\n", escape(command.name));
  for (const Flag& flag : flags())
    if (flag.positional && flag.belongs_to(command.name)) text += fmt::format(".Op Ar {}\n", flag.metavar);
  text += ".Op Ar flags\n.Sh DESCRIPTION\n" + sentences(command.doc);
  text += ".Sh OPTIONS\n";
  for (std::string_view group : groups()) {
    std::string items;
    for (const Flag& flag : flags())
      if (flag.group == group && flag.belongs_to(command.name)) items += flag_item(flag);
    if (!items.empty()) text += fmt::format(".Ss {}\n.Bl -tag -width Ds\n{}.El\n", escape(group), items);
  }
  text +=
      ".Sh ENVIRONMENT\nEvery flag is read from the variable named with it above.\n"
      "A flag wins over the environment, and the environment over the file of\n.Sy \"\\-\\-config\" .\n";
  return text + exit_section() + examples_section(command.examples) + ".Sh SEE ALSO\n.Xr moectl 1\n";
}

std::string main_page() {
  std::string text = page_head("moectl", "serve Mixture-of-Experts language models");
  text +=
      ".Sh SYNOPSIS\n.Nm\n.Ar command\n.Op Ar flags\n.Sh DESCRIPTION\n"
      ".Nm\nserves checkpoints of Mixture\\-of\\-Experts language models over the OpenAI API.\n"
      "Data goes to standard output, diagnostics to standard error.\n"
      "The commands are:\n.Bl -tag -width Ds\n";
  for (const Command& command : commands())
    if (!command.hidden)
      text += fmt::format(".It Sy {}\n{}.\nSee\n.Xr {} 1 .\n", argument(command.name), escape(command.summary),
                          page_name(command));
  text += ".El\n" + exit_section() + examples_section(commands().front().examples) + ".Sh SEE ALSO\n";
  std::vector<std::string> pages;
  for (const Command& command : commands())
    if (!command.hidden) pages.push_back(page_name(command));
  std::sort(pages.begin(), pages.end());
  for (const std::string& page : pages) text += fmt::format(".Xr {} 1{}\n", page, &page == &pages.back() ? "" : " ,");
  return text;
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

std::vector<GeneratedFile> generated_files() {
  std::vector<GeneratedFile> files = {{"man/moectl.1", main_page()}};
  for (const Command& command : commands())
    if (!command.hidden) files.push_back({fmt::format("man/{}.1", page_name(command)), command_page(command)});
  files.push_back({"completions/moectl.bash", bash_completion()});
  files.push_back({"completions/_moectl", zsh_completion()});
  files.push_back({"completions/moectl.fish", fish_completion()});
  return files;
}

int docgen(const DocgenOptions& options) {
  const fs::path root = options.root;
  std::vector<std::string> differing;
  std::vector<std::string> known;
  for (const GeneratedFile& file : generated_files()) {
    known.push_back(file.path);
    const fs::path path = root / file.path;
    if (read_file(path) == file.text) continue;
    differing.push_back(file.path);
    if (options.check) continue;
    fs::create_directories(path.parent_path());
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out << file.text;
    if (!out.flush()) throw Error(Code::kNotFound, fmt::format("cannot write {}", path.string()));
    std::printf("%s\n", file.path.c_str());
  }
  // A page whose command is gone must go too.
  std::error_code failed;
  for (const char* folder : {"man", "completions"})
    for (const auto& entry : fs::directory_iterator(root / folder, failed)) {
      const std::string path = fmt::format("{}/{}", folder, entry.path().filename().string());
      if (std::find(known.begin(), known.end(), path) == known.end())
        differing.push_back(path + " (no longer written: remove it)");
    }
  if (options.check && !differing.empty())
    throw Error(Code::kBadData,
                fmt::format("out of date: {}. Run `moectl docgen` in the source tree and commit the result",
                            fmt::join(differing, ", ")));
  return 0;
}

}  // namespace moectl
