#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/path_begin.h"

std::unique_ptr<Ops> make_cpu_ops(int num_threads, bool spin) {
  return std::make_unique<CpuOps>(num_threads, spin);
}

#include "kernels/cpu/path_end.h"
