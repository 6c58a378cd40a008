#include "cmd/yaml_file.h"

#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <fstream>

#include "core/base/error.h"

namespace moectl {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

std::string read_text(std::string_view what, const std::string& path) {
  std::error_code failed;
  const std::filesystem::file_status status = std::filesystem::status(path, failed);
  if (!std::filesystem::exists(status)) throw Error(Code::kNotFound, fmt::format("{} {}: no such file", what, path));
  if (std::filesystem::is_directory(status))
    throw Error(Code::kBadData, fmt::format("{} {}: is a folder, expected a YAML file", what, path));
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), std::streamsize(text.size()));
  text.resize(size_t(file.gcount()));
  if (file.bad() || (!file.eof() && text.size() <= kMaxFileBytes))
    throw Error(Code::kBadData, fmt::format("{} {}: cannot be read; check its permissions", what, path));
  if (text.size() > kMaxFileBytes) throw Error(Code::kBadData, fmt::format("{} {}: is larger than 1 MiB", what, path));
  return text;
}

}  // namespace

void read_yaml_file(std::string_view what, const std::string& path,
                    const std::function<void(const YAML::Node& root)>& take) {
  const std::string text = read_text(what, path);
  try {
    take(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    const std::string where = error.mark.is_null() ? path : fmt::format("{}:{}", path, error.mark.line + 1);
    throw Error(Code::kBadData, fmt::format("{}: not YAML: {}", where, error.msg));
  }
}

}  // namespace moectl
