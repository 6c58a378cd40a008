// CUDA_CHECK(call): turns a failed CUDA runtime call into an Error that names the call and the place. Use after
// launches too: CUDA_CHECK(cudaGetLastError()).
#pragma once

#include <cuda_runtime.h>

#include "core/base/error.h"

#define CUDA_CHECK(call)                                                                                          \
  do {                                                                                                            \
    const cudaError_t cuda_status_ = (call);                                                                      \
    if (cuda_status_ != cudaSuccess) [[unlikely]]                                                                 \
      throw ::moectl::Error(::moectl::Code::kUnavailable, fmt::format("{}:{}: {}: {}", __FILE__, __LINE__, #call, \
                                                                      cudaGetErrorString(cuda_status_)));         \
  } while (0)
