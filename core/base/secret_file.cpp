#include "core/base/secret_file.h"

#include <fstream>

#include "core/base/error.h"

namespace moectl {
namespace {

constexpr size_t kMinSecretBytes = 16, kMaxSecretBytes = 4096;

[[noreturn]] void refuse(const std::string& path, std::string_view why) {
  throw Error(Code::kBadConfig,
              fmt::format("--cluster-secret-file {}: {}. Make one with `openssl rand -hex 32 > FILE` and give the same "
                          "to every process of the cluster",
                          path, why));
}

}  // namespace

std::string read_secret_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse(path, "the file cannot be read");
  std::string text(kMaxSecretBytes + 1, '\0');
  file.read(text.data(), std::streamsize(text.size()));
  if (file.bad()) refuse(path, "the file cannot be read");
  text.resize(size_t(file.gcount()));
  if (text.size() > kMaxSecretBytes) refuse(path, fmt::format("it holds more than {} bytes", kMaxSecretBytes));
  constexpr const char* kBlanks = " \t\r\n";
  const size_t first = text.find_first_not_of(kBlanks);
  text = first == std::string::npos ? std::string() : text.substr(first, text.find_last_not_of(kBlanks) + 1 - first);
  if (text.size() < kMinSecretBytes)
    refuse(path, fmt::format("it holds {} bytes, and at least {} are needed", text.size(), kMinSecretBytes));
  return text;
}

}  // namespace moectl
