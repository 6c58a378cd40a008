// Tensor maps: how TMA sees a tensor in device memory. Host code; encoding takes well under a microsecond and touches
// no device, so launchers encode at each launch and pass the map as a __grid_constant__ argument.
// cuTensorMapEncodeTiled comes from the driver that the runtime found: libcuda is never linked.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <initializer_list>

#include "core/base/check.h"
#include "kernels/cuda/runtime/check.h"

namespace moectl::cuda {

struct TensorMapSpec {
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const void* data = nullptr;                   // 16-byte aligned
  std::initializer_list<int64_t> dims;          // elements, innermost first; 2 to 4
  std::initializer_list<int64_t> stride_bytes;  // of dims[1], dims[2], ...; multiples of 16
  std::initializer_list<int> box;               // elements per copy, at most 256 each
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
  CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
};

inline CUtensorMap make_tensor_map(const TensorMapSpec& s) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess || entry == nullptr)
      throw Error(Code::kUnavailable,
                  "the CUDA driver has no cuTensorMapEncodeTiled: install driver 525 or later (CUDA 12)");
    return reinterpret_cast<Encode>(entry);
  }();
  constexpr int kMaxRank = 4;
  const int rank = int(s.dims.size());
  CHECK(rank >= 2 && rank <= kMaxRank && int(s.box.size()) == rank && int(s.stride_bytes.size()) == rank - 1,
        "tensor map of rank {} with {} strides and a box of {}", rank, s.stride_bytes.size(), s.box.size());
  cuuint64_t dims[kMaxRank], strides[kMaxRank];
  cuuint32_t box[kMaxRank], steps[kMaxRank];
  for (int i = 0; i < rank; ++i) {
    dims[i] = cuuint64_t(s.dims.begin()[i]);
    box[i] = cuuint32_t(s.box.begin()[i]);
    steps[i] = 1;
    if (i > 0) strides[i - 1] = cuuint64_t(s.stride_bytes.begin()[i - 1]);
  }
  CUtensorMap map;
  const CUresult status =
      encode(&map, s.type, cuuint32_t(rank), const_cast<void*>(s.data), dims, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, s.swizzle, s.promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled: status {} for data {}, dims [{}, {}, ..], box [{}, {}, ..]",
        int(status), s.data, dims[0], dims[1], box[0], box[1]);
  return map;
}

}  // namespace moectl::cuda
