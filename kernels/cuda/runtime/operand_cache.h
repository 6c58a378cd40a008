// OperandCache: where the copies of f32 activations lie that tensor-core kernels read, so that several weights share
// the copy of one operand. It knows addresses only: whoever writes activations must say so (forget), and the order of
// the stream makes reuse of the memory safe. Operands of a step's tokens and of the rows of experts have places of
// their own: the former outlive an expert layer. Where two streams part, each makes at most two copies of tokens before
// they meet, beside the two of what both read; so there are six places, and nobody overwrites what the other reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace moectl::cuda {

class OperandCache {
 public:
  enum class Kind { kFp8, kBf16 };
  enum Pool { kTokens, kExperts };
  static constexpr int64_t kNumPlaces[] = {6, 2};  // by pool

  struct Copy {
    void* memory = nullptr;  // null: larger than the pool's places
    bool missing = true;     // to be written now
  };

  // Gives a pool its memory, 256-byte aligned, of kNumPlaces[pool] * place_bytes.
  void set_memory(Pool pool, std::byte* memory, int64_t place_bytes) {
    pools_[pool].place_bytes = place_bytes;
    pools_[pool].next = 0;
    pools_[pool].entries.clear();
    for (int64_t i = 0; i < kNumPlaces[pool]; ++i) pools_[pool].entries.push_back({.memory = memory + i * place_bytes});
  }

  // The copy of x [rows, k], which takes num_bytes, for a product.
  Copy get(Pool pool, const void* x, int64_t rows, int64_t k, Kind kind, int64_t num_bytes) {
    Places& p = pools_[pool];
    p.wanted[size_t(kind)].insert(k);
    for (const Entry& e : p.entries)
      if (e.x == x && e.rows == rows && e.k == k && e.kind == kind && (!e.of_side || on_side_))
        return {e.memory, false};
    void* memory = put(pool, x, rows, k, kind, num_bytes);
    return {memory, memory != nullptr};
  }
  // Whether a product has ever asked for such a copy. Who writes rows of that size then makes it at once: a guess that
  // costs time at most, because a copy's bits are the same whoever makes it.
  bool is_wanted(Pool pool, int64_t k, Kind kind) const { return pools_[pool].wanted[size_t(kind)].contains(k); }
  // Where the copy of x, which the caller writes, shall be; null: no room.
  void* put(Pool pool, const void* x, int64_t rows, int64_t k, Kind kind, int64_t num_bytes) {
    Places& p = pools_[pool];
    if (p.entries.empty() || num_bytes > p.place_bytes) return nullptr;
    Entry& e = p.entries[p.next];
    p.next = (p.next + 1) % p.entries.size();
    e = {e.memory, x, rows, k, kind, on_side_};
    return e.memory;
  }

  // Copies made while `on_side` are in another stream: the main one sees them after meet().
  void set_side(bool on_side) { on_side_ = on_side; }
  void meet() {
    for (Places& p : pools_)
      for (Entry& e : p.entries) e.of_side = false;
  }

  // Copies of what lies in the range are no longer what is there.
  void forget(const void* begin, int64_t num_bytes) {
    const auto* from = static_cast<const std::byte*>(begin);
    for (Places& p : pools_)
      for (Entry& e : p.entries) {
        const auto* x = static_cast<const std::byte*>(e.x);
        if (x && x < from + num_bytes && from < x + e.rows * e.k * int64_t(sizeof(float))) e.x = nullptr;
      }
  }
  void clear() {
    for (Places& p : pools_)
      for (Entry& e : p.entries) e.x = nullptr;
  }

 private:
  struct Entry {
    std::byte* memory = nullptr;
    const void* x = nullptr;  // null: nothing
    int64_t rows = 0, k = 0;
    Kind kind = Kind::kFp8;
    bool of_side = false;
  };
  struct Places {
    int64_t place_bytes = 0;
    size_t next = 0;
    std::vector<Entry> entries;
    std::set<int64_t> wanted[2];  // sizes of rows, by kind
  };
  Places pools_[2];
  bool on_side_ = false;
};

}  // namespace moectl::cuda
