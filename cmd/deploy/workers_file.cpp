#include "cmd/deploy/workers_file.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "cmd/yaml_file.h"
#include "core/base/error.h"
#include "router/context.h"

namespace moectl {
namespace {

constexpr size_t kMaxWorkers = 4096;

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
      address.role = value == "prefill" ? Role::kPrefill : Role::kDecode;
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
  std::vector<router::WorkerAddress> workers;
  read_yaml_file("--workers-file", path, [&](const YAML::Node& root) {
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
  });
  if (std::none_of(workers.begin(), workers.end(), [](const auto& w) { return w.role == Role::kDecode; }))
    throw Error(Code::kBadData, fmt::format("{}: it names no decode worker", path));
  return workers;
}

}  // namespace moectl
