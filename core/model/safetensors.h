// Checkpoint tensors: safetensors files by mmap, one or sharded, every offset checked before use. Read-only and
// thread-safe after open. It knows names, dtypes, shapes and bytes, nothing of models.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"

namespace moectl {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // not aligned; points into the mapping
  int64_t num_bytes = 0;
  std::string file;  // file name for messages
};

class Checkpoint {
 public:
  // Opens `dir`/model.safetensors or every file that model.safetensors.index.json names. Throws Error{kNotFound} (no
  // such folder or file) or Error{kBadData} naming file and tensor: header too large (> 100 MB), malformed or nested
  // JSON, unknown dtype, a shape whose product overflows or disagrees with the byte range, reversed, overlapping or
  // uncovered ranges, a truncated file, a path in weight_map that leaves the folder, a tensor that its file lacks or
  // that two files hold.
  static Checkpoint open(const std::filesystem::path& dir);
  // Of tensors that point into `memory`, which lives as long as this; `name` stands for the folder.
  static Checkpoint in_memory(std::string name, std::vector<TensorInfo> tensors,
                              std::vector<std::shared_ptr<const void>> memory);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::map<std::string, TensorInfo, std::less<>>& tensors() const;
  const TensorInfo* find(std::string_view name) const;
  // The tensor, or Error{kBadData} that prints expected and actual. A dimension of -1 accepts any size.
  const TensorInfo& get(std::string_view name, std::span<const int64_t> shape) const;
  int64_t total_bytes() const;  // of all tensors
  const std::filesystem::path& dir() const;
  bool is_mapped() const;  // open(): bytes come from files
  // Gives the file pages of tensors back to the system after they were packed (keeps resident memory near the weights'
  // size). Many at a time: each range that is unmapped interrupts every core.
  void release(std::vector<const TensorInfo*> tensors) const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moectl
