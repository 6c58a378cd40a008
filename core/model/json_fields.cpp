#include "core/model/json_fields.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.h"

namespace moectl {

using nlohmann::json;

std::string read_untrusted_text(const std::filesystem::path& file, int64_t max_bytes) {
  // Non-blocking, so that a FIFO in the folder cannot hang the load before fstat tells what it is.
  int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    int error = errno;
    throw Error(error == ENOENT || error == ENOTDIR ? Code::kNotFound : Code::kBadData,
                fmt::format("{}: cannot be opened: {}", file.string(), std::strerror(error)));
  }
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat st {};
  if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
    throw Error(Code::kBadData, fmt::format("{}: is not a regular file", file.string()));
  if (st.st_size > max_bytes)
    throw Error(Code::kBadData,
                fmt::format("{}: is {} bytes long; at most {} are read", file.string(), st.st_size, max_bytes));
  std::string text(size_t(st.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    ssize_t n = ::read(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Error(Code::kBadData, fmt::format("{}: cannot be read to its end", file.string()));
    done += size_t(n);
  }
  return text;
}

json read_untrusted_json(const std::filesystem::path& file, int64_t max_bytes) {
  return parse_untrusted_json(read_untrusted_text(file, max_bytes), file.string());
}

void require_checkpoint_dir(const std::filesystem::path& dir) {
  std::error_code ec;
  if (std::filesystem::is_directory(dir, ec)) return;
  throw Error(Code::kNotFound,
              fmt::format("{}: {}; expected a checkpoint folder (config.json and *.safetensors)", dir.string(),
                          std::filesystem::exists(dir, ec) ? "is not a folder" : "there is no such folder"));
}

std::string brief_json(const json& value) {
  if (value.is_discarded()) return "nothing";
  constexpr size_t kMax = 80;
  // A large value is not dumped whole only to be cut.
  if (value.is_object() && value.size() > 8) return fmt::format("an object of {} fields", value.size());
  if (value.is_array() && value.size() > 16) return fmt::format("a list of {} values", value.size());
  if (value.is_string() && value.get_ref<const std::string&>().size() > kMax)
    return brief_json(value.get_ref<const std::string&>().substr(0, kMax));
  std::string s = value.dump(-1, ' ', true, json::error_handler_t::replace);  // ASCII: no control bytes on a terminal
  if (s.size() > kMax) s = s.substr(0, kMax) + "...";
  return s;
}

Fields::Fields(const json& json, std::string origin, std::string prefix)
    : json_(&json),
      origin_(std::move(origin)),
      prefix_(std::move(prefix)),
      read_(std::make_shared<std::set<std::string>>()) {
  if (json.is_object()) return;
  std::string what = prefix_.empty() ? "" : fmt::format(" `{}`", prefix_.substr(0, prefix_.size() - 1));
  throw Error(Code::kBadData, fmt::format("{}:{} is {}; expected an object", origin_, what, brief_json(json)));
}

const json* Fields::find(std::string_view name) const {
  read_->insert(fmt::format("{}{}", prefix_, name));
  auto it = json_->find(name);
  if (it == json_->end()) {
    if (!defaults_) return nullptr;
    it = defaults_->find(name);
    if (it == defaults_->end()) return nullptr;
  }
  return it->is_null() ? nullptr : &*it;
}

std::vector<std::string> Fields::unread() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : json_->items())
    if (!value.is_null() && !read_->contains(prefix_ + name)) names.push_back(name);
  return names;
}

void Fields::ignore(std::initializer_list<std::string_view> names) const {
  for (std::string_view name : names) read_->insert(fmt::format("{}{}", prefix_, name));
}

bool Fields::contains(std::string_view name) const {
  return json_->contains(name);
}
bool Fields::empty() const {
  return json_->empty();
}

void Fields::fail(std::string_view name, std::string_view expected) const {
  const json* value = find(name);
  std::string is = contains(name) ? (value ? "is " + brief_json(*value) : "is null")
                   : value        ? fmt::format("is missing, which means {}", brief_json(*value))
                                  : "is missing";
  throw Error(Code::kBadData, fmt::format("{}: `{}{}` {}; expected {}", origin_, prefix_, name, is, expected));
}

int64_t Fields::integer(std::string_view name, int64_t min, int64_t max) const {
  const json* value = find(name);
  bool in_range = false;
  if (value && value->is_number_unsigned())
    in_range =
        max >= 0 && value->get<uint64_t>() <= uint64_t(max) && (min <= 0 || value->get<uint64_t>() >= uint64_t(min));
  else if (value && value->is_number_integer())
    in_range = value->get<int64_t>() >= min && value->get<int64_t>() <= max;
  if (!in_range) fail(name, fmt::format("an integer from {} to {}", min, max));
  return value->get<int64_t>();
}

int64_t Fields::integer_or(std::string_view name, int64_t fallback, int64_t min, int64_t max) const {
  return has(name) ? integer(name, min, max) : fallback;
}

double Fields::number(std::string_view name, double min, double max) const {
  const json* value = find(name);
  double x = value && value->is_number() ? value->get<double>() : std::nan("");
  if (!(x >= min && x <= max)) fail(name, fmt::format("a number from {} to {}", min, max));  // NaN fails as well
  return x;
}

double Fields::number_or(std::string_view name, double fallback, double min, double max) const {
  return has(name) ? number(name, min, max) : fallback;
}

bool Fields::boolean_or(std::string_view name, bool fallback) const {
  const json* value = find(name);
  if (!value) return fallback;
  if (!value->is_boolean()) fail(name, "true or false");
  return value->get<bool>();
}

std::string Fields::text(std::string_view name) const {
  const json* value = find(name);
  if (!value || !value->is_string()) fail(name, "a string");
  return value->get<std::string>();
}

std::string Fields::text_or(std::string_view name, std::string_view fallback) const {
  return has(name) ? text(name) : std::string(fallback);
}

std::optional<Fields> Fields::object(std::string_view name) const {
  const json* value = find(name);
  if (!value) return std::nullopt;
  Fields inner(*value, origin_, fmt::format("{}{}.", prefix_, name));
  inner.read_ = read_;
  return inner;
}

std::vector<std::string> Fields::texts(std::string_view name) const {
  constexpr size_t kMaxCount = 1024;
  const json* value = find(name);
  if (!value) return {};
  const std::string expected = fmt::format("a list of up to {} texts", kMaxCount);
  if (!value->is_array() || value->size() > kMaxCount) fail(name, expected);
  std::vector<std::string> out;
  for (const json& item : *value) {
    if (!item.is_string()) fail(name, expected);
    out.push_back(item.get<std::string>());
  }
  return out;
}

std::vector<int32_t> Fields::integers(std::string_view name, int64_t min, int64_t max) const {
  constexpr size_t kMaxCount = 1024;
  const json* value = find(name);
  if (!value) return {};
  if (!value->is_array()) return {int32_t(integer(name, min, max))};
  std::string expected = fmt::format("an integer from {} to {}, or a list of up to {} of them", min, max, kMaxCount);
  if (value->size() > kMaxCount) fail(name, expected);
  std::vector<int32_t> out;
  for (const json& item : *value) {
    bool ok = item.is_number_unsigned() ? item.get<uint64_t>() <= uint64_t(max) : item.is_number_integer();
    if (!ok || item.get<int64_t>() < min || item.get<int64_t>() > max) fail(name, expected);
    out.push_back(int32_t(item.get<int64_t>()));
  }
  return out;
}

std::string_view Fields::either(std::initializer_list<std::string_view> names) const {
  std::string_view chosen;
  for (std::string_view name : names) {
    if (!has(name) || !contains(name)) continue;  // a default does not stand against what is written
    if (chosen.empty()) chosen = name;
    if (*find(name) != *find(chosen))
      fail(name, fmt::format("the same as `{}{}`, which is {}", prefix_, chosen, brief_json(*find(chosen))));
  }
  return chosen.empty() ? *names.begin() : chosen;
}

}  // namespace moectl
