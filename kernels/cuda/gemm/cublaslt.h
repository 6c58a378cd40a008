// CublasLt: NVIDIA's matrix library, loaded at run time and never linked, so that the binary starts without it. Where
// it is absent, why_absent() says what was tried, and callers use our own kernels. Any thread may use it; one handle
// per device. Knows nothing of models: out = x W^T of one shape.
//
// Its choice of an algorithm depends on the number of rows, so it is not batch-invariant: not for --deterministic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/base/dtype.h"
#include "kernels/ops.h"

namespace moectl::cuda {

// Scales of FP8 operands. kTensor: one for each matrix. kBlock: 1 x 128 for x, 128 x 128 for w.
enum class LtScales { kNone, kTensor, kBlock };

// out[m, n] = x[m, k] w[n, k]^T, all row-major and 16-byte aligned.
struct LtMatmulArgs {
  int64_t m = 0, n = 0, k = 0;
  DType dtype = DType::kBF16;      // of x and w: kBF16, or kF8E4M3 with scales
  DType out_dtype = DType::kBF16;  // kBF16 or kF32
  LtScales scales = LtScales::kNone;
  const void* x = nullptr;
  const void* w = nullptr;
  void* out = nullptr;
  const float* x_scales = nullptr;  // kBlock: [k / 128, m], the rows' scales of one block of k side by side
  const float* w_scales = nullptr;  // kBlock: [ceil(n / 128), round_up(k / 128, 4)]
  // Tensor scales only: sums stay in the tensor cores' own, shorter accumulator (faster, less exact).
  bool fast_accumulation = false;
  void* workspace = nullptr;  // kLtWorkspaceBytes, of this stream alone
};

// What the library's fastest algorithms may need on Hopper.
constexpr int64_t kLtWorkspaceBytes = 32 << 20;

class CublasLt {
 public:
  // Loads the library at the first call; later calls are free.
  static CublasLt& get();

  bool is_present() const;
  const std::string& why_absent() const;  // empty when present
  std::string version() const;            // "13.0.2"; empty when absent

  // Empty, or why the current device or this version of the library cannot compute `args` (of its pointers only the
  // alignment matters). The answer and the algorithm are kept per device and shape.
  std::string why_unsupported(const LtMatmulArgs& args);
  // Enqueues it; may be captured into a graph. Throws Error{kUnavailable} with why_absent() or why_unsupported().
  void matmul(const LtMatmulArgs& args, Stream stream);

  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;
  ~CublasLt();

 private:
  CublasLt();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moectl::cuda
