// View: a pointer with a shape. It owns nothing; memory belongs to a Buffer, a weight's to its backend (kernels/ops.h).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "core/base/check.h"

namespace moectl {

// Row-major and contiguous, up to four dimensions. An empty view (data == nullptr) means "not given" in Args structs.
template <class T>
struct View {
  T* data = nullptr;
  std::array<int64_t, 4> shape{};
  int rank = 0;

  View() = default;
  View(T* p, std::initializer_list<int64_t> dims) : data(p), rank(int(dims.size())) {
    CHECK(dims.size() <= 4, "a view has at most four dimensions, not {}", dims.size());
    int i = 0;
    for (int64_t d : dims) shape[i++] = d;
  }
  template <class U>
  requires(std::is_same_v<std::remove_const_t<T>, U>&& std::is_const_v<T>) View(const View<U>& o)
      : data(o.data), shape(o.shape), rank(o.rank) {}  // View<T> converts to View<const T>

  explicit operator bool() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[i]; }
  int64_t size() const {
    int64_t n = rank ? 1 : 0;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  // Number of elements one step of the first dimension skips.
  int64_t row_size() const {
    int64_t n = 1;
    for (int i = 1; i < rank; ++i) n *= shape[i];
    return n;
  }
  T* row(int64_t i) const { return data + i * row_size(); }
  T& operator()(int64_t i) const { return data[i]; }
  T& operator()(int64_t i, int64_t j) const { return data[i * shape[1] + j]; }
  T& operator()(int64_t i, int64_t j, int64_t k) const { return data[(i * shape[1] + j) * shape[2] + k]; }
  // The first `n` rows.
  View first(int64_t n) const {
    View v = *this;
    v.shape[0] = n;
    return v;
  }
};

}  // namespace moectl
