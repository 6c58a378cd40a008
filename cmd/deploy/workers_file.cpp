#include "cmd/deploy/workers_file.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>

#include "core/base/error.h"
#include "router/context.h"

namespace moectl {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20, kMaxWorkers = 4096;

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(Code::kNotFound, fmt::format("--workers-file {}: cannot be read", path));
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), std::streamsize(text.size()));
  text.resize(size_t(file.gcount()));
  if (file.bad()) throw Error(Code::kBadData, fmt::format("--workers-file {}: cannot be read", path));
  if (text.size() > kMaxFileBytes)
    throw Error(Code::kBadData, fmt::format("--workers-file {}: is larger than 1 MiB", path));
  return text;
}

router::WorkerAddress read_entry(const YAML::Node& entry, const std::string& where) {
  if (!entry.IsMap())
    throw Error(Code::kBadData, where + ": expected an entry like `{role: decode, url: http://HOST:PORT}`");
  router::WorkerAddress address;
  bool has_role = false, has_url = false;
  for (const auto& field : entry) {
    if (!field.first.IsScalar() || !field.second.IsScalar())
      throw Error(Code::kBadData, where + ": expected plain values for `role` and `url`");
    const std::string name = field.first.Scalar(), value = field.second.Scalar();
    if (name == "role") {
      if (value != "prefill" && value != "decode")
        throw Error(Code::kBadData, fmt::format("{}: role `{}`: expected prefill or decode", where, value));
      address.role = value == "prefill" ? router::Role::kPrefill : router::Role::kDecode;
      has_role = true;
    } else if (name == "url") {
      try {
        address.url = router::worker_url(value);
      } catch (const Error& e) {
        throw Error(Code::kBadData, fmt::format("{}: {}", where, e.what()));
      }
      has_url = true;
    } else {
      throw Error(Code::kBadData, fmt::format("{}: unknown key `{}`, expected `role` and `url`", where, name));
    }
  }
  if (!has_role || !has_url)
    throw Error(Code::kBadData, fmt::format("{}: `{}` is missing", where, has_role ? "url" : "role"));
  return address;
}

}  // namespace

std::vector<router::WorkerAddress> read_workers_file(const std::string& path) {
  const std::string text = read_text(path);
  std::vector<router::WorkerAddress> workers;
  try {
    const YAML::Node root = YAML::Load(text);
    if (!root.IsSequence())
      throw Error(Code::kBadData,
                  fmt::format("{}: expected a list of `{{role: decode, url: http://HOST:PORT}}`", path));
    for (const YAML::Node& entry : root) {
      const std::string where = fmt::format("{}:{}", path, entry.Mark().line + 1);
      router::WorkerAddress address = read_entry(entry, where);
      if (std::find(workers.begin(), workers.end(), address) != workers.end())
        throw Error(Code::kBadData, fmt::format("{}: {} is given twice", where, address.url));
      if (workers.size() == kMaxWorkers)
        throw Error(Code::kBadData, fmt::format("{}: more than {} workers", where, kMaxWorkers));
      workers.push_back(std::move(address));
    }
  } catch (const YAML::Exception& e) {
    const std::string where = e.mark.is_null() ? path : fmt::format("{}:{}", path, e.mark.line + 1);
    throw Error(Code::kBadData, fmt::format("{}: not YAML or JSON: {}", where, e.msg));
  }
  if (std::none_of(workers.begin(), workers.end(), [](const auto& w) { return w.role == router::Role::kDecode; }))
    throw Error(Code::kBadData, fmt::format("{}: it names no decode worker", path));
  return workers;
}

}  // namespace moectl
