// Entry: parse, set up the log, run the command, turn what it throws into a message and an exit code
// (core/base/error.h). Ctrl-C: servers handle it themselves; other commands die of the signal, which a shell reports as
// 130.
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "cmd/flags/flags.h"
#include "core/base/log.h"

extern char** environ;

namespace {

using namespace moectl;

Environment read_process_environment() {
  Environment result;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (equals != text.npos) result.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return result;
}

void init_log(const CommonOptions& common) {
  const std::map<std::string, log::Level> levels = {{"debug", log::Level::kDebug},
                                                    {"info", log::Level::kInfo},
                                                    {"warn", log::Level::kWarn},
                                                    {"error", log::Level::kError}};
  log::init(common.log_format == "json" ? log::Format::kJson : log::Format::kText, levels.at(common.log_level),
            !common.no_color);
}

int run(const std::vector<std::string>& args) {
  Invocation invocation = parse_command_line(args, read_process_environment());
  if (!invocation.command) {
    std::fputs(invocation.text.c_str(), stdout);
    return 0;
  }
  init_log(invocation.options.common);
  for (const std::string& warning : invocation.warnings) log::warn("{}", warning);
  return invocation.command->run(invocation.options);
}

}  // namespace

int main(int argc, char** argv) {
  int code = 1;
  bool threw = true;
  try {
    code = run({argv + (argc > 0 ? 1 : 0), argv + argc});
    threw = false;
  } catch (const moectl::Error& error) {
    moectl::log::print(fmt::format("moectl: error: {}\n", error.what()));
    code = exit_code(error.code());
  } catch (const std::bad_alloc&) {
    moectl::log::print("moectl: error: out of memory\n");
  } catch (const std::exception& error) {
    moectl::log::print(fmt::format("moectl: error: unexpected failure: {}\n", error.what()));
  }
  if (std::fflush(stdout) != 0 && code == 0) {
    moectl::log::print("moectl: error: cannot write to standard output\n");
    code = 1;
  }
  moectl::log::flush();
  // Threads of an engine that failed may hang in the driver of their device, whose own destructors would wait for them.
  if (threw) std::_Exit(code);
  return code;
}
