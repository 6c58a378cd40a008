#include "core/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
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

}  // namespace

void init(Format format, Level level, bool color) {
  g_json = format == Format::kJson;
  logger() = make_logger(color && format == Format::kText);
  if (g_json) logger()->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})");
  logger()->set_level(to_spdlog(level));
}

void write(Level level, std::string_view message, std::string_view request_id) {
  if (!logger()->should_log(to_spdlog(level))) return;
  if (!g_json)
    return logger()->log(to_spdlog(level),
                         request_id.empty() ? std::string(message) : fmt::format("{} {}", request_id, message));
  std::string fields = request_id.empty() ? "" : fmt::format(R"("request_id":"{}",)", json_escape(request_id));
  fields += fmt::format(R"("message":"{}")", json_escape(message));
  logger()->log(to_spdlog(level), fields);
}

}  // namespace moectl::log
