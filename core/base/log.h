// Logging: diagnostics to stderr as text or JSON lines. spdlog and fmt stay behind this header. Never log prompts,
// outputs or keys. A tool writes its lines at once, and waits when stderr is a pipe that is full; a server starts the
// writer thread, and then no call waits.
#pragma once

#include <fmt/core.h>

#include <chrono>
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

namespace moectl::log {

enum class Level { kDebug, kInfo, kWarn, kError };
enum class Format { kText, kJson };

// Once, from cmd/main, before threads start. Colour is used only on a terminal and when NO_COLOR is unset.
void init(Format format, Level level, bool color);
// From now on lines go through a bounded queue (core/base/line_writer.h). Once, from a server's command; a process that
// forks later must not call it.
void start_writer();
// `text` to stderr as it is, in order with the lines of the log.
void print(std::string_view text);
// Before the process ends: waits until all lines are out, at most for `limit`.
void flush(std::chrono::milliseconds limit = std::chrono::seconds(1));
// Lines that were lost since the start because stderr did not take them.
int64_t num_dropped();

// A value that a program reads from the line: in JSON a field of its own, in text only what the message says of it.
struct Field {
  std::string_view key;  // in snake_case; not time, level, request_id or message
  std::variant<std::string_view, int64_t, double> value;
};
// A line about one request: its id comes first, or in JSON as the field "request_id".
struct About {
  std::string_view request_id;
  std::span<const Field> fields = {};
};
void write(Level level, std::string_view message, const About& about = {});

template <class... Args>
void info(About about, fmt::format_string<Args...> f, Args&&... a) {
  write(Level::kInfo, fmt::format(f, std::forward<Args>(a)...), about);
}
template <class... Args>
void warn(About about, fmt::format_string<Args...> f, Args&&... a) {
  write(Level::kWarn, fmt::format(f, std::forward<Args>(a)...), about);
}

template <class... Args>
void debug(fmt::format_string<Args...> f, Args&&... a) {
  write(Level::kDebug, fmt::format(f, std::forward<Args>(a)...));
}
template <class... Args>
void info(fmt::format_string<Args...> f, Args&&... a) {
  write(Level::kInfo, fmt::format(f, std::forward<Args>(a)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> f, Args&&... a) {
  write(Level::kWarn, fmt::format(f, std::forward<Args>(a)...));
}
template <class... Args>
void error(fmt::format_string<Args...> f, Args&&... a) {
  write(Level::kError, fmt::format(f, std::forward<Args>(a)...));
}

}  // namespace moectl::log
