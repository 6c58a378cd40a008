// Every command and every flag of moectl, each defined once as data (commands.cpp, table.cpp and the files beside it).
// The parser, the environment, the configuration file, --help, the man pages and the completions are functions over
// these two tables; adding a command or a flag is adding an entry. A flag's target is a field of RawOptions, and its
// default is what that field holds before parsing; resolve() makes Options of it, which commands read. Main thread
// only, no I/O but reading --config and looking for the model folder. Knows nothing of what commands do.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "cmd/command.h"
#include "core/base/error.h"

namespace moectl {

// Everything that commands read, resolved; each command takes the blocks it needs (commands.cpp).
struct Options {
  CommonOptions common;
  EngineConfig engine;
  ApiOptions api;
  ServiceOptions service;
  router::RouterOptions router;
  std::string cluster_secret_file;
  std::chrono::seconds shutdown_timeout{30};
  BenchLoad load;
  ServeLoad serve_load;
  BenchKernelsOptions kernels;
  CommBenchOptions comm;
  std::optional<RankMemoryQuery> ranks;
  EndpointOptions endpoint;
  DebugRequestOptions debug;
  DeployOptions deploy;
  DocgenOptions docgen;
};

// What the flags hold after the sources are merged and before resolve(). An empty optional: not given, and the default
// depends on other values.
struct RawOptions {
  Options values;  // of the flags that need no resolving
  std::optional<std::string> model, served_model_name;
  std::vector<std::string> shapes;
  std::optional<int> tp_size, dp_size, ep_size;
  std::vector<int> devices;
  std::string all2all_backend = "auto";
  double gpu_memory_gb = 0;
  int block_size = 64;                           // 64 is the only one
  bool enable_eplb = false, enable_dbo = false;  // known, not in this version
  std::optional<int> eplb_step_interval;         // likewise
  std::string device = "auto";
  std::string collectives = "auto";
  std::optional<int> num_threads;
  int pause_ms = 2;
  std::optional<int> port;
  std::optional<bool> debug_header;
  int kv_port = 9100;
  std::optional<std::string> policy, prefill_policy, decode_policy;
  std::string config_file;
  bool help = false, version = false;
};

// The field that a flag sets; its type says how the text is read.
template <class T>
using FieldOf = T& (*)(RawOptions&);
using Target = std::variant<FieldOf<bool>, FieldOf<std::optional<bool>>,                // switch
                            FieldOf<int>, FieldOf<std::optional<int>>,                  // whole number in [min, max]
                            FieldOf<uint64_t>,                                          // likewise
                            FieldOf<int64_t>,                                           // bytes: 512M, 2G, 1GiB
                            FieldOf<double>,                                            // number in [min, max]
                            FieldOf<std::chrono::seconds>,                              // seconds
                            FieldOf<std::optional<std::chrono::seconds>>,               //
                            FieldOf<std::string>, FieldOf<std::optional<std::string>>,  // text, or one of `choices`
                            FieldOf<std::vector<std::string>>,                          // repeatable
                            FieldOf<std::vector<int>>>;                                 // 1,4,16

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
  std::vector<std::string_view> environment = {};  // names besides MOECTL_<FLAG>
  Sources sources = Sources::kAll;
  Completes completes = Completes::kNothing;
  bool negatable = false;   // a switch that is on by default: --no-<name> exists
  bool positional = false;  // may also stand alone: moectl inspect MODEL
  bool secret = false;      // its value appears in no message

  bool is_switch() const;
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

const std::vector<Command>& commands();  // commands.cpp
const std::vector<Flag>& flags();        // table.cpp
std::vector<std::string_view> groups();  // headings in the order of --help

const Command* find_command(std::string_view name);
const Flag* find_flag(std::string_view command, std::string_view name);  // name or alias, `_` counts as `-`

// ---------------------------------------------------------------------------------------------- parsing
using Environment = std::map<std::string, std::string>;

struct Invocation {
  const Command* command = nullptr;   // null: print `text`
  Options options;                    // resolved
  std::string text;                   // --help, --version, or the short help
  std::vector<std::string> warnings;  // for the log
};

// `args` without the program's name. Throws Error{kUsage} (argv, environment), Error{kBadData} (the file),
// Error{kBadConfig} (values that do not go together), Error{kNotFound} (no such model).
Invocation parse_command_line(const std::vector<std::string>& args, const Environment& environment);

// One value as it was written, and where.
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
Given read_config_file(const Command& command, const std::string& path);                   // config_file.cpp
void set_value(RawOptions& raw, const Flag& flag, const std::vector<GivenValue>& values);  // value.cpp
std::string default_text(const Flag& flag);                    // as --help shows it; empty: nothing to show
std::vector<std::string> environment_names(const Flag& flag);  // in order of precedence
// Checks values against each other, finds the model folder, and decides what follows from other values. `given` names
// origins.
Options resolve(RawOptions raw, const Command& command, const Given& given);  // resolve.cpp

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
