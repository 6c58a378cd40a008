#include "core/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cmath>
#include <string>

namespace moectl::log {
namespace {

std::atomic<bool> g_json{false};

std::shared_ptr<spdlog::logger> make_logger(bool color) {
  auto mode = color ? spdlog::color_mode::automatic : spdlog::color_mode::never;
  auto logger = std::make_shared<spdlog::logger>("moectl", std::make_shared<spdlog::sinks::stderr_color_sink_mt>(mode));
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%-5l%$ %v");
  logger->flush_on(spdlog::level::debug);
  return logger;
}

std::shared_ptr<spdlog::logger>& logger() {
  static std::shared_ptr<spdlog::logger> instance = make_logger(true);
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

}  // namespace

void init(Format format, Level level, bool color) {
  g_json = format == Format::kJson;
  logger() = make_logger(color && format == Format::kText);
  if (g_json) logger()->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})");
  logger()->set_level(to_spdlog(level));
}

void write(Level level, std::string_view message, const About& about) {
  if (!logger()->should_log(to_spdlog(level))) return;
  if (g_json)
    logger()->log(to_spdlog(level), json_fields(message, about));
  else
    logger()->log(to_spdlog(level),
                  about.request_id.empty() ? std::string(message) : fmt::format("{} {}", about.request_id, message));
}

}  // namespace moectl::log
