#include "core/model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/base/check.h"
#include "core/model/json_fields.h"

// The format (https://github.com/huggingface/safetensors): a little-endian u64 header length, a JSON header
// {name: {dtype, shape, data_offsets: [begin, end)}}, then the bytes. The ranges must cover the data exactly: no gap
// can hide bytes and no tensor can alias another.
namespace moectl {

using nlohmann::json;

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
constexpr int64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxRank = 8;
// JSON values in one member: an entry of a header has about ten, `__metadata__` one for each of its texts.
constexpr size_t kMaxHeaderMemberValues = 100'000;
constexpr size_t kMaxIndexValues = 1'000'000;  // tensors of a checkpoint; the largest published ones have 150,000
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

[[noreturn]] void bad(std::string message) {
  throw Error(Code::kBadData, std::move(message));
}

// A whole file, mapped read-only. A file that another process truncates afterwards makes later reads raise SIGBUS; the
// kernel offers no way to hold its size, so checkpoints are replaced (written beside, renamed), never rewritten in
// place.
class Mapping {
 public:
  explicit Mapping(const std::filesystem::path& path) {
    int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) bad(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
    struct stat st {};
    bool regular = ::fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (regular && st.st_size > 0) {
      size_ = size_t(st.st_size);
      void* p = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
      if (p != MAP_FAILED) data_ = static_cast<const std::byte*>(p);
    }
    int error = errno;
    ::close(fd);
    if (!regular) bad(fmt::format("{}: is not a regular file", path.string()));
    if (st.st_size == 0)
      bad(fmt::format("{}: is empty; expected a safetensors file (download it again)", path.string()));
    if (!data_) bad(fmt::format("{}: cannot be mapped: {}", path.string(), std::strerror(error)));
  }
  Mapping(Mapping&& o) noexcept : data_(std::exchange(o.data_, nullptr)), size_(o.size_) {}
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

std::optional<DType> dtype_of(std::string_view name) {
  static constexpr std::pair<std::string_view, DType> kNames[] = {
      {"F32", DType::kF32},        {"BF16", DType::kBF16},      {"F16", DType::kF16}, {"F8_E4M3", DType::kF8E4M3},
      {"F8_E5M2", DType::kF8E5M2}, {"F8_E8M0", DType::kF8E8M0}, {"I8", DType::kI8},   {"U8", DType::kU8},
      {"I16", DType::kI16},        {"I32", DType::kI32},        {"I64", DType::kI64}, {"BOOL", DType::kBool}};
  for (const auto& [n, t] : kNames)
    if (n == name) return t;
  return std::nullopt;
}

// A JSON number that is an integer of [0, 2^63).
std::optional<int64_t> as_size(const json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max()))
    return std::nullopt;
  return value.get<int64_t>();
}

// One entry of a header, checked against the bytes there are.
struct Entry {
  TensorInfo info;
  int64_t begin = 0, end = 0;
};

Entry parse_entry(const std::string& name, const json& value, int64_t data_bytes, const std::string& file) {
  const auto where = [&] { return fmt::format("{}: tensor {}", file, brief_json(name)); };  // of messages only
  if (!value.is_object()) bad(fmt::format("{} is {}; expected an object", where(), brief_json(value)));
  auto field = [&](const char* key) -> const json& {
    auto it = value.find(key);
    if (it == value.end()) bad(fmt::format("{} has no `{}`", where(), key));
    return *it;
  };
  Entry e;
  e.info.name = name;

  const json& dtype = field("dtype");
  std::optional<DType> known = dtype.is_string() ? dtype_of(dtype.get_ref<const std::string&>()) : std::nullopt;
  if (!known)
    bad(fmt::format(
        "{} has dtype {}; supported are F32, BF16, F16, F8_E4M3, F8_E5M2, F8_E8M0, I8, U8, I16, I32, I64, BOOL",
        where(), brief_json(dtype)));
  e.info.dtype = *known;

  const json& shape = field("shape");
  if (!shape.is_array() || shape.size() > kMaxRank)
    bad(fmt::format("{} has shape {}; expected a list of at most {} sizes", where(), brief_json(shape), kMaxRank));
  int64_t num_bytes = dtype_bytes(e.info.dtype);
  for (const json& dim : shape) {
    std::optional<int64_t> d = as_size(dim);
    if (!d) bad(fmt::format("{} has shape {}; every size must be an integer from 0", where(), brief_json(shape)));
    if (__builtin_mul_overflow(num_bytes, *d, &num_bytes))
      bad(fmt::format("{} has shape {}: its size in bytes overflows", where(), brief_json(shape)));
    e.info.shape.push_back(*d);
  }
  e.info.num_bytes = num_bytes;

  const json& offsets = field("data_offsets");
  std::optional<int64_t> begin, end;
  if (offsets.is_array() && offsets.size() == 2) begin = as_size(offsets[0]), end = as_size(offsets[1]);
  if (!begin || !end)
    bad(fmt::format("{} has data_offsets {}; expected two integers [begin, end]", where(), brief_json(offsets)));
  if (*begin > *end) bad(fmt::format("{} has reversed data_offsets [{}, {}]", where(), *begin, *end));
  if (*end > data_bytes)
    bad(fmt::format("{} ends at data byte {}, but the file holds {}: it is truncated or damaged (download it again)",
                    where(), *end, data_bytes));
  if (*end - *begin != num_bytes)
    bad(fmt::format("{} has {} bytes at data_offsets [{}, {}], but dtype {} and shape {} need {}", where(),
                    *end - *begin, *begin, *end, dtype_name(e.info.dtype), brief_json(shape), num_bytes));
  e.begin = *begin;
  e.end = *end;
  return e;
}

// Sorted by place, each entry must begin where the one before ended.
void check_coverage(std::vector<Entry>& entries, int64_t data_bytes, const std::string& file) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  int64_t covered = 0;
  for (const Entry& e : entries) {
    if (e.begin < covered)
      bad(fmt::format("{}: tensor `{}` at data byte {} overlaps the one before it, which ends at {}", file, e.info.name,
                      e.begin, covered));
    if (e.begin > covered)
      bad(fmt::format("{}: data bytes {} to {}, before tensor `{}`, belong to no tensor", file, covered, e.begin,
                      e.info.name));
    covered = e.end;
  }
  if (covered != data_bytes)
    bad(fmt::format("{}: data bytes {} to {}, at its end, belong to no tensor", file, covered, data_bytes));
}

std::vector<TensorInfo> read_header(const Mapping& map, const std::string& file) {
  uint64_t header_bytes = 0;
  if (map.size() < sizeof header_bytes)
    bad(fmt::format("{}: is {} bytes long; a safetensors file begins with an 8-byte header length", file, map.size()));
  for (int i = 0; i < 8; ++i) header_bytes |= uint64_t(map.data()[i]) << (8 * i);
  const uint64_t rest = map.size() - sizeof header_bytes;
  if (header_bytes > kMaxHeaderBytes)
    bad(fmt::format("{}: states a header of {} bytes; at most {} are read (is it a safetensors file?)", file,
                    header_bytes, kMaxHeaderBytes));
  if (header_bytes > rest)
    bad(fmt::format("{}: states a header of {} bytes, but only {} follow: it is truncated (download it again)", file,
                    header_bytes, rest));
  const int64_t data_bytes = int64_t(rest - header_bytes);
  const std::byte* data = map.data() + sizeof header_bytes + header_bytes;

  const std::string origin = file + ": header";
  std::vector<Entry> entries;
  for_each_untrusted_member({reinterpret_cast<const char*>(map.data()) + sizeof header_bytes, size_t(header_bytes)},
                            origin, "an object", kMaxHeaderMemberValues,
                            [&](const std::string& name, const json& value) {
                              if (name != "__metadata__") entries.push_back(parse_entry(name, value, data_bytes, file));
                            });
  check_coverage(entries, data_bytes, file);

  std::vector<TensorInfo> out;
  out.reserve(entries.size());
  for (Entry& e : entries) {
    e.info.data = data + e.begin;
    e.info.file = file;
    out.push_back(std::move(e.info));
  }
  return out;
}

// A file name of weight_map: a plain name in the folder. (The file itself may be a symbolic link: the hub's cache links
// every file to a blob.)
void check_shard_name(const std::string& shard, const std::string& tensor, const std::string& index) {
  bool plain = !shard.empty() && shard.size() <= 255 && shard != "." && shard != ".." &&
               shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  if (!plain)
    bad(fmt::format("{}: weight_map sends tensor {} to {}; expected the plain name of a file in the same folder", index,
                    brief_json(tensor), brief_json(shard)));
}

// file name -> tensors that weight_map says it holds
std::map<std::string, std::vector<std::string>> read_index(const std::filesystem::path& path) {
  const std::string expected = "an object with `weight_map`: {tensor: file}";
  std::map<std::string, std::vector<std::string>> shards;
  const auto read_map = [&](const json& map) {
    for (const auto& [tensor, shard] : map.items()) {
      if (!shard.is_string())
        bad(fmt::format("{}: weight_map sends tensor {} to {}; expected a file name", path.string(), brief_json(tensor),
                        brief_json(shard)));
      const std::string& name = shard.get_ref<const std::string&>();
      check_shard_name(name, tensor, path.string());
      shards[name].push_back(tensor);
    }
  };
  for_each_untrusted_member(read_untrusted_text(path, kMaxIndexBytes), path.string(), expected, kMaxIndexValues,
                            [&](const std::string& name, const json& value) {
                              if (name == "weight_map" && value.is_object()) read_map(value);
                            });
  if (shards.empty()) bad(fmt::format("{}: has no `weight_map`; expected an object {{tensor: file}}", path.string()));
  return shards;
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i)
    s += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return s + "]";
}

}  // namespace

struct Checkpoint::Impl {
  std::filesystem::path dir;
  std::vector<Mapping> maps;
  std::map<std::string, TensorInfo, std::less<>> tensors;
  int64_t total_bytes = 0;
  std::vector<std::shared_ptr<const void>> memory;  // of in_memory(); there are no files then

  void add_file(const std::string& file) {
    maps.emplace_back(dir / file);
    for (TensorInfo& info : read_header(maps.back(), (dir / file).string())) {
      total_bytes += info.num_bytes;
      std::string name = info.name;
      auto [it, added] = tensors.try_emplace(std::move(name), std::move(info));
      if (!added)
        bad(fmt::format("{}: tensor {} is also in {}; each tensor must be in one file", (dir / file).string(),
                        brief_json(it->first), it->second.file));
    }
  }
};

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const std::filesystem::path& dir) {
  require_checkpoint_dir(dir);
  std::error_code ec;
  auto impl = std::make_unique<Impl>();
  impl->dir = dir;
  // The single file first, as transformers does when both are there.
  if (std::filesystem::exists(dir / kSingleFile, ec)) {
    impl->add_file(kSingleFile);
  } else if (std::filesystem::exists(dir / kIndexFile, ec)) {
    const std::string index = (dir / kIndexFile).string();
    for (const auto& [file, tensors] : read_index(dir / kIndexFile)) {
      if (!std::filesystem::exists(dir / file, ec))
        bad(fmt::format("{}: weight_map names {}, which is not in the folder: the checkpoint is incomplete", index,
                        brief_json(file)));
      impl->add_file(file);
      for (const std::string& name : tensors)
        if (auto it = impl->tensors.find(name); it == impl->tensors.end() || it->second.file != (dir / file).string())
          bad(fmt::format("{}: weight_map says tensor {} is in {}, but that file does not hold it", index,
                          brief_json(name), file));
    }
  } else {
    throw Error(Code::kNotFound, fmt::format("{}: holds neither {} nor {}; expected a checkpoint in safetensors format",
                                             dir.string(), kSingleFile, kIndexFile));
  }
  return Checkpoint(std::move(impl));
}

const std::map<std::string, TensorInfo, std::less<>>& Checkpoint::tensors() const {
  return impl_->tensors;
}
int64_t Checkpoint::total_bytes() const {
  return impl_->total_bytes;
}
const std::filesystem::path& Checkpoint::dir() const {
  return impl_->dir;
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
  auto it = impl_->tensors.find(name);
  return it == impl_->tensors.end() ? nullptr : &it->second;
}

const TensorInfo& Checkpoint::get(std::string_view name, std::span<const int64_t> shape) const {
  const TensorInfo* t = find(name);
  if (!t)
    bad(fmt::format("{}: tensor `{}` is missing; config.json implies one of shape {}", impl_->dir.string(), name,
                    shape_text(shape)));
  bool same =
      t->shape.size() == shape.size() && std::equal(shape.begin(), shape.end(), t->shape.begin(),
                                                    [](int64_t want, int64_t is) { return want < 0 || want == is; });
  if (!same)
    bad(fmt::format("{}: tensor `{}` has shape {}; config.json implies {}", t->file, name, shape_text(t->shape),
                    shape_text(shape)));
  return *t;
}

Checkpoint Checkpoint::in_memory(std::string name, std::vector<TensorInfo> tensors,
                                 std::vector<std::shared_ptr<const void>> memory) {
  auto impl = std::make_unique<Impl>();
  impl->dir = std::move(name);
  impl->memory = std::move(memory);
  for (TensorInfo& t : tensors) {
    impl->total_bytes += t.num_bytes;
    std::string key = t.name;
    impl->tensors.emplace(std::move(key), std::move(t));
  }
  return Checkpoint(std::move(impl));
}

bool Checkpoint::is_mapped() const {
  return !impl_->maps.empty();
}

void Checkpoint::release(std::vector<const TensorInfo*> tensors) const {
  if (!is_mapped()) return;
  const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE));
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo* a, const TensorInfo* b) { return a->data < b->data; });
  for (size_t i = 0; i < tensors.size();) {
    uintptr_t begin = uintptr_t(tensors[i]->data), end = begin;
    for (; i < tensors.size() && uintptr_t(tensors[i]->data) == end; ++i) end += uintptr_t(tensors[i]->num_bytes);
    // Whole pages inside the range only, so that a neighbour which is being read keeps its own.
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    // Advice: a failure costs memory, not correctness. The pages are clean and come back from the file when read again.
    if (begin < end) (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
}

}  // namespace moectl
