// `moectl deploy logs`: lines of one or all instances in the order of time, filtered; follows when asked.
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <regex>

#include "cmd/command.h"
#include "cmd/deploy/duration.h"
#include "cmd/deploy/log.h"
#include "cmd/deploy/plan.h"
#include "cmd/deploy/state.h"
#include "core/base/error.h"

namespace moectl {
namespace {

constexpr std::chrono::milliseconds kFollow{100};

struct Source {
  std::string instance;
  LogReader reader;
};
struct Shown {
  LogLine line;
  size_t source;
};

// std::regex recurses with the length of what it looks at; log lines are bounded, this keeps them short enough for it.
constexpr size_t kMaxSearched = 4096;

class Filter {
 public:
  Filter(const DeployOptions& options) {
    if (!options.since.empty())
      since_ms_ = unix_ms() - std::chrono::milliseconds(parse_duration(options.since, "--since")).count();
    if (options.grep.empty()) return;
    try {
      pattern_.emplace(options.grep, std::regex::ECMAScript | std::regex::optimize);
    } catch (const std::regex_error& error) {
      throw Error(Code::kUsage,
                  fmt::format("--grep: '{}' is not a regular expression: {}", options.grep, error.what()));
    }
  }
  bool takes(const LogLine& line) const {
    if (line.unix_ms < since_ms_) return false;
    if (!pattern_) return true;
    return std::regex_search(line.text.begin(), line.text.begin() + long(std::min(line.text.size(), kMaxSearched)),
                             *pattern_);
  }

 private:
  int64_t since_ms_ = 0;
  std::optional<std::regex> pattern_;
};

std::vector<std::string> wanted_instances(const DeployState& state, const std::string& wanted) {
  std::vector<std::string> result, known;
  for (const InstanceStatus& instance : state.instances) {
    known.push_back(instance.id);
    if (wanted.empty() || instance.id == wanted || instance.role == wanted) result.push_back(instance.id);
  }
  if (result.empty())
    throw Error(Code::kNotFound, fmt::format("deployment {} has no instance `{}`; it has {}", state.name, wanted,
                                             fmt::join(known, ", ")));
  return result;
}

bool print(const std::vector<std::unique_ptr<Source>>& sources, const Shown& shown) {
  const std::string prefix = sources.size() > 1 ? fmt::format("{:<10} | ", sources[shown.source]->instance) : "";
  std::string text = shown.line.text;
  for (char& c : text)
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f) c = '?';  // nothing that moves a terminal
  return std::fprintf(stdout, "%s%s\n", prefix.c_str(), text.c_str()) >= 0;
}

}  // namespace

int deploy_logs(const DeployOptions& options) {
  const std::string name = options.name.value_or(DeployPlan().name), folder = deploy_folder(name);
  const std::optional<DeployState> state = read_state(folder);
  if (!state)
    throw Error(Code::kUnavailable, fmt::format("there is no deployment {}; `moectl deploy up` starts one", name));
  const Filter filter(options);
  std::vector<std::unique_ptr<Source>> sources;
  for (const std::string& instance : wanted_instances(*state, options.instance))
    sources.emplace_back(new Source{instance, LogReader(log_path(folder, instance, options.previous))});
  if (options.previous && !options.follow &&
      std::none_of(sources.begin(), sources.end(), [](const auto& s) { return s->reader.exists(); }))
    throw Error(Code::kNotFound, "no log from before the last start: nothing was started twice");

  std::vector<Shown> shown;
  const auto read_all = [&] {
    shown.clear();
    for (size_t i = 0; i < sources.size(); ++i)
      sources[i]->reader.read([&](LogLine line) {
        if (filter.takes(line)) shown.push_back({std::move(line), i});
      });
    std::stable_sort(shown.begin(), shown.end(),
                     [](const Shown& a, const Shown& b) { return a.line.unix_ms < b.line.unix_ms; });
  };
  read_all();
  const size_t skipped =
      options.tail && shown.size() > size_t(*options.tail) ? shown.size() - size_t(*options.tail) : 0;
  for (size_t i = skipped; i < shown.size(); ++i) print(sources, shown[i]);
  // Until Ctrl-C, or until stdout has no reader.
  while (options.follow) {
    if (std::fflush(stdout) != 0) return 0;
    pollfd reader{STDOUT_FILENO, 0, 0};
    if (::poll(&reader, 1, int(kFollow.count())) > 0) return 0;
    read_all();
    for (const Shown& line : shown) print(sources, line);
  }
  return 0;
}

}  // namespace moectl
