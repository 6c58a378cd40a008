#include "core/model/model_hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <fstream>
#include <string_view>

#include "core/base/error.h"

namespace moectl {
namespace {

constexpr int64_t kSampleBytes = 256;
constexpr std::streamsize kMaxConfigBytes = 16 << 20;

// Every part with its length, so that two different lists of parts are two different texts.
class PartHash {
 public:
  PartHash() { XXH3_128bits_reset(&state_); }
  void add(const void* data, size_t num_bytes) {
    const uint64_t length = num_bytes;
    XXH3_128bits_update(&state_, &length, sizeof length);
    if (num_bytes) XXH3_128bits_update(&state_, data, num_bytes);
  }
  void add(std::string_view text) { add(text.data(), text.size()); }
  std::string hex() const {
    const XXH128_hash_t h = XXH3_128bits_digest(&state_);
    return fmt::format("{:016x}{:016x}", h.high64, h.low64);
  }

 private:
  XXH3_state_t state_;
};

std::string config_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(Code::kNotFound, fmt::format("{}: cannot be read; a checkpoint needs it", path.string()));
  std::string text(size_t(kMaxConfigBytes) + 1, '\0');
  in.read(text.data(), kMaxConfigBytes + 1);
  if (in.gcount() > kMaxConfigBytes)
    throw Error(Code::kBadData, fmt::format("{}: is larger than {} bytes", path.string(), kMaxConfigBytes));
  text.resize(size_t(in.gcount()));
  return text;
}

}  // namespace

std::string model_hash(const Checkpoint& checkpoint) {
  PartHash hash;
  hash.add("moectl model 1");
  hash.add(config_text(checkpoint.dir() / "config.json"));
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    hash.add(name);
    hash.add(dtype_name(tensor.dtype));
    hash.add(tensor.shape.data(), tensor.shape.size() * sizeof(int64_t));
    hash.add(tensor.data, size_t(std::min(tensor.num_bytes, kSampleBytes)));
  }
  return hash.hex();
}

}  // namespace moectl
