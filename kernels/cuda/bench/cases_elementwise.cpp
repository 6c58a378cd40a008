// Operations that only move rows, beside a plain copy that moves as many bytes.
#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/rms_norm.h"

namespace moectl::cuda::bench {
namespace {

const std::vector<std::string> kCopy = {"copy of as many bytes"};

std::function<void(Stream)> copy_of(Memory& memory, double bytes) {
  const int64_t half = int64_t(bytes / 2);
  auto* from = memory.alloc<std::byte>(half);
  auto* to = memory.alloc<std::byte>(half);
  return [=](Stream stream) {
    CUDA_CHECK(
        cudaMemcpyAsync(to, from, size_t(half), cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream.handle)));
  };
}

Case rms_norm_case(const KernelShape& s, int64_t rows) {
  const int64_t size = s.hidden_size;
  Case c{.kernel = "rms_norm",
         .shape = fmt::format("{} {}x{}, residual", s.name, rows, size),
         .bytes = 4.0 * double(rows * size) * 4,
         .peers = kCopy};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    RmsNormArgs args;
    args.x = {memory.floats(rows * size), {rows, size}};
    args.residual = {memory.floats(rows * size), {rows, size}};
    args.weight = {memory.floats(size), {size}};
    args.out = {memory.alloc<float>(rows * size), {rows, size}};
    Work work;
    work.run = [args](Stream stream) { rms_norm(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = args.out.data;
    work.out_bytes = rows * size * 4;
    return work;
  };
  return c;
}

}  // namespace

void add_elementwise_cases(const KernelShape& s, Cases& cases) {
  for (const int64_t rows : {1, 128, 4096}) cases.push_back(rms_norm_case(s, rows));
}

}  // namespace moectl::cuda::bench
