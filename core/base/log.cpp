#include "core/base/log.h"

#include <spdlog/details/os.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <string>

#include "core/base/line_writer.h"

namespace moectl::log {
namespace {

std::atomic<bool> g_json{false};
std::atomic<LineWriter*> g_writer{nullptr};  // null: lines are written by the thread that logs them

void put(std::string text) {
  if (LineWriter* writer = g_writer) return writer->write(std::move(text));
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

std::string_view color_of(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::debug:
      return "\033[36m";
    case spdlog::level::info:
      return "\033[32m";
    case spdlog::level::warn:
      return "\033[33m\033[1m";
    default:
      return "\033[31m\033[1m";
  }
}

class StderrSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit StderrSink(bool color) : color_(color) {}
  std::string format(spdlog::level::level_enum level, const std::string& payload) {
    std::lock_guard lock(mutex_);
    return format_locked(spdlog::details::log_msg("moectl", level, payload));
  }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override { put(format_locked(message)); }
  void flush_() override {}
  std::string format_locked(const spdlog::details::log_msg& message) {
    spdlog::memory_buf_t buffer;
    formatter_->format(message, buffer);
    std::string line(buffer.data(), buffer.size());
    if (color_ && message.color_range_end > message.color_range_start) {
      line.insert(message.color_range_end, "\033[m");
      line.insert(message.color_range_start, color_of(message.level));
    }
    return line;
  }

  const bool color_;
};

bool terminal_has_color() {
  return spdlog::details::os::in_terminal(stderr) && spdlog::details::os::is_color_terminal();
}

std::shared_ptr<spdlog::logger> make_logger(bool color) {
  auto logger = std::make_shared<spdlog::logger>("moectl", std::make_shared<StderrSink>(color && terminal_has_color()));
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%-5l%$ %v");
  return logger;
}

std::shared_ptr<spdlog::logger>& logger() {
  // Never destroyed: the writer's thread may log until the process has ended.
  static auto& instance = *new std::shared_ptr<spdlog::logger>(make_logger(true));
  return instance;
}

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarn:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

std::string json_escape(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 8);
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += char(c);
    } else if (c < 0x20) {
      out += fmt::format("\\u{:04x}", c);
    } else {
      out += char(c);
    }
  }
  return out;
}

std::string json_value(const std::variant<std::string_view, int64_t, double>& value) {
  if (const auto* text = std::get_if<std::string_view>(&value)) return fmt::format(R"("{}")", json_escape(*text));
  if (const auto* number = std::get_if<int64_t>(&value)) return fmt::format("{}", *number);
  const double number = std::get<double>(value);
  return std::isfinite(number) ? fmt::format("{:.6g}", number) : "null";
}

// The fields of a JSON line behind time and level.
std::string json_fields(std::string_view message, const About& about) {
  std::string text;
  if (!about.request_id.empty()) text = fmt::format(R"("request_id":"{}",)", json_escape(about.request_id));
  text += fmt::format(R"("message":"{}")", json_escape(message));
  for (const Field& field : about.fields) text += fmt::format(R"(,"{}":{})", field.key, json_value(field.value));
  return text;
}

// What a line says, as the formatter's pattern expects it.
std::string payload_of(std::string_view message, const About& about) {
  if (g_json) return json_fields(message, about);
  return about.request_id.empty() ? std::string(message) : fmt::format("{} {}", about.request_id, message);
}

std::string dropped_report(int64_t count) {
  const std::string message = fmt::format("{} log lines were dropped: the reader of stderr is too slow", count);
  auto& sink = static_cast<StderrSink&>(*logger()->sinks().front());
  return sink.format(spdlog::level::warn, payload_of(message, {}));
}

}  // namespace

void init(Format format, Level level, bool color) {
  g_json = format == Format::kJson;
  logger() = make_logger(color && format == Format::kText);
  if (g_json) logger()->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})");
  logger()->set_level(to_spdlog(level));
}

void start_writer() {
  // Never destroyed: threads log until the process has ended.
  if (!g_writer) g_writer = new LineWriter(STDERR_FILENO, dropped_report);
}

void write(Level level, std::string_view message, const About& about) {
  if (logger()->should_log(to_spdlog(level))) logger()->log(to_spdlog(level), payload_of(message, about));
}

void print(std::string_view text) {
  put(std::string(text));
}

void flush(std::chrono::milliseconds limit) {
  if (LineWriter* writer = g_writer) writer->flush(limit);
}

int64_t num_dropped() {
  const LineWriter* writer = g_writer;
  return writer ? writer->num_dropped() : 0;
}

}  // namespace moectl::log
