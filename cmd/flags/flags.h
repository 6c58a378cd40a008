// Every command and every flag of moectl, each defined once as data (table.cpp). The parser, the environment, the
// configuration file, --help, the man pages and the completions are functions over these two tables; adding a command
// or a flag is adding an entry. Values end in the option structs of cmd/command.h through each flag's target, and a
// flag's default is what the struct holds before parsing. Main thread only, no I/O but reading --config and looking for
// the model folder. Knows nothing of what commands do.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "cmd/command.h"
#include "cmd/deploy/deploy.h"
#include "core/base/error.h"

namespace moectl {

// Everything any flag can set; a command takes the blocks it needs.
struct Options {
  CommonOptions common;
  ParallelOptions parallel;
  EngineConfig engine;
  ApiOptions api;
  RoutingOptions routing;
  ClusterOptions cluster;
  BenchLoad load;
  BenchKernelsOptions kernels;
  ServeLoad serve_load;
  EndpointOptions endpoint;
  DebugRequestOptions debug;
  DeployOptions deploy;
  DocgenOptions docgen;
  std::vector<std::string> shapes;  // --shape
  int block_size = 64;              // --block-size: 64 is the only one
  bool help = false, version = false;
};

// The member that a flag sets; its type says how the text is read.
template <class T>
using MemberOf = T& (*)(Options&);
using Target = std::variant<MemberOf<bool>,                      // switch
                            MemberOf<int>, MemberOf<uint64_t>,   // whole number in [min, max]
                            MemberOf<int64_t>,                   // bytes: 512M, 2G, 1GiB
                            MemberOf<double>,                    // number in [min, max]
                            MemberOf<std::chrono::seconds>,      // seconds
                            MemberOf<std::string>,               // text, or one of `choices`
                            MemberOf<std::vector<std::string>>,  // repeatable
                            MemberOf<std::vector<int>>>;         // 1,4,16

enum class Sources { kAll, kNotFile, kArgvOnly };   // where a flag may be given
enum class Completes { kNothing, kFile, kFolder };  // what a shell offers as its value

struct Flag {
  std::string_view name;                       // "port", without dashes
  std::vector<std::string_view> aliases = {};  // other long names
  char short_name = 0;
  std::string_view metavar = {};           // "N"; empty for switches; choices stand for it when there are any
  std::string_view group;                  // heading in --help
  std::vector<std::string_view> commands;  // which commands have it
  Target target;
  std::string_view help;      // one line, no full stop
  std::string_view doc = {};  // the man page's further sentences
  std::vector<std::string_view> choices = {};
  std::vector<std::pair<std::string_view, std::string_view>> synonyms = {};  // other spellings and their choices
  int64_t min = 0, max = INT32_MAX;                                          // of numbers, seconds and bytes
  std::string_view shown_default = {};             // in place of the printed default ("one a core")
  std::vector<std::string_view> environment = {};  // names beside MOECTL_<FLAG>
  Sources sources = Sources::kAll;
  Completes completes = Completes::kNothing;
  bool negatable = false;   // a switch that is on by default: --no-<name> exists
  bool positional = false;  // may also stand alone: moectl inspect MODEL
  bool secret = false;      // its value appears in no message

  bool is_switch() const { return std::holds_alternative<MemberOf<bool>>(target); }
  bool is_list() const;
  bool belongs_to(std::string_view command) const;
};

struct Example {
  std::string_view line, what;
};

struct Command {
  std::string_view name;     // "serve-decode", "bench engine"
  std::string_view summary;  // one line, no full stop
  std::string_view doc;      // paragraphs for --help and the man page
  std::vector<Example> examples;
  int (*run)(const Options&);
  bool hidden = false;
};

const std::vector<Command>& commands();
const std::vector<Flag>& flags();
std::vector<Flag> router_flags();        // the part of flags() that stands in router.cpp
std::vector<Flag> tool_flags();          // the part of flags() that stands in tools.cpp
std::vector<Flag> bench_flags();         // the part of flags() that stands in bench.cpp
std::vector<Flag> deploy_flags();        // the part of flags() that stands in deploy.cpp
std::vector<Command> deploy_commands();  // and of commands()
std::vector<std::string_view> groups();  // headings in the order of --help

const Command* find_command(std::string_view name);
const Flag* find_flag(std::string_view command, std::string_view name);  // name or alias, `_` counts as `-`

// ---------------------------------------------------------------------------------------------- parsing
using Environment = std::map<std::string, std::string>;

struct Invocation {
  const Command* command = nullptr;  // null: print `text`
  Options options;
  std::string text;                   // --help, --version, or the short help
  std::vector<std::string> warnings;  // for the log
};

// `args` without the program's name. Throws Error{kUsage} (argv, environment), Error{kBadData} (the file),
// Error{kBadConfig} (values that do not go together), Error{kNotFound} (no such model).
Invocation parse_command_line(const std::vector<std::string>& args, const Environment& environment);

// One value as somebody wrote it, and where.
struct GivenValue {
  std::string text;
  std::string origin;        // "--port", "MOECTL_PORT", "moectl.yaml:3: port"
  Code code = Code::kUsage;  // of an error in it
};
struct GivenFlag {
  const Flag* flag;
  std::vector<GivenValue> values;  // in order
};
using Given = std::map<std::string_view, GivenFlag>;  // by flag name

struct ArgvResult {
  Given given;
  std::vector<std::string> extra;  // what no flag takes, in order
};
ArgvResult parse_argv(const Command& command, const std::vector<std::string>& args);  // parse.cpp
Given read_environment(const Command& command, const Environment& environment, std::vector<std::string>* warnings);
Given read_config_file(const Command& command, const std::string& path);                    // config_file.cpp
void set_value(Options& options, const Flag& flag, const std::vector<GivenValue>& values);  // value.cpp
std::string default_text(const Flag& flag);                    // as --help shows it; empty: nothing to show
std::vector<std::string> environment_names(const Flag& flag);  // in order of precedence
// Checks values against each other, finds the model folder, fills what follows from other values. `given` names
// origins.
void resolve(Options& options, const Command& command, const Given& given);  // resolve.cpp

// The candidate nearest to `word`, or empty when none is near.
std::string closest(std::string_view word, const std::vector<std::string>& candidates);
std::vector<std::string> flag_words(std::string_view command);  // "--port", ...: names, aliases, --no- forms

// ---------------------------------------------------------------------------------------------- texts
std::string version_line();  // "moectl 0.1.0"
std::string short_help();    // of `moectl` alone
std::string help_text(const Command& command);
std::string flag_syntax(const Flag& flag, bool with_short = true);  // "--device auto|cpu|cuda"
std::string value_name(const Flag& flag);  // "auto|cpu|cuda" or, when long, the metavar; empty for switches
std::string wrap(std::string_view text, int indent, int width);  // lines after the first are indented

struct GeneratedFile {
  std::string path;  // relative to the source tree
  std::string text;
};
std::vector<GeneratedFile> generated_files();  // man/ and completions/                         docgen.cpp
std::string bash_completion();                 // docgen_completions.cpp
std::string zsh_completion();
std::string fish_completion();

}  // namespace moectl
