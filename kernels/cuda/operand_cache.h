// OperandCache: where the copies of f32 activations lie that tensor-core kernels read, so that several weights share
// the copy of one operand. It knows addresses only: whoever writes activations must say so (forget), and the order of
// the stream makes reuse of the memory safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace moectl::cuda {

class OperandCache {
 public:
  enum class Kind { kFp8, kBf16 };
  struct Copy {
    void* memory = nullptr;  // null: larger than the cache's places
    bool missing = true;     // to be written now
  };

  // Takes the memory in equal places, 256-byte aligned.
  void set_memory(std::byte* memory, int64_t num_bytes) {
    place_bytes_ = num_bytes / int64_t(entries_.size()) / 256 * 256;
    for (size_t i = 0; i < entries_.size(); ++i) entries_[i] = {.memory = memory + int64_t(i) * place_bytes_};
  }
  static constexpr int64_t kPlaces = 2;

  // The copy of x [rows, k], which takes num_bytes.
  Copy get(const float* x, int64_t rows, int64_t k, Kind kind, int64_t num_bytes) {
    for (const Entry& e : entries_)
      if (e.x == x && e.rows == rows && e.k == k && e.kind == kind) return {e.memory, false};
    if (num_bytes > place_bytes_) return {};
    Entry& e = entries_[next_];
    next_ = (next_ + 1) % entries_.size();
    e = {e.memory, x, rows, k, kind};
    return {e.memory, true};
  }

  // Copies of what lies in the range are no longer what is there.
  void forget(const void* begin, int64_t num_bytes) {
    const auto* from = static_cast<const std::byte*>(begin);
    for (Entry& e : entries_) {
      const auto* x = reinterpret_cast<const std::byte*>(e.x);
      if (x && x < from + num_bytes && from < x + e.rows * e.k * int64_t(sizeof(float))) e.x = nullptr;
    }
  }
  void clear() {
    for (Entry& e : entries_) e.x = nullptr;
  }

 private:
  struct Entry {
    std::byte* memory = nullptr;
    const float* x = nullptr;  // null: nothing
    int64_t rows = 0, k = 0;
    Kind kind = Kind::kFp8;
  };
  std::array<Entry, kPlaces> entries_;
  int64_t place_bytes_ = 0;
  size_t next_ = 0;
};

}  // namespace moectl::cuda
