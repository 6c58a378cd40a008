// Measures the cases of bench.h. A time is the median of replays of a CUDA graph that runs over all sets of inputs in
// turn, divided by the number of runs in it: launches follow each other as in a decode step, and the sets together are
// far larger than L2. Roofs: the bandwidth of streaming loads over memory that no cache holds, and the higher rate of
// two large matrix products through cuBLASLt, each measured on this device before the cases.
#include <algorithm>
#include <memory>
#include <regex>

#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/gemm/cublaslt.h"
#include "kernels/cuda/runtime/check.h"
#include "kernels/cuda/runtime/device.h"

namespace moectl::cuda::bench {
namespace kernel {

constexpr int kReadThreads = 512, kReadUnroll = 4, kReadRun = kReadThreads * kReadUnroll;

// Each block reads runs of kReadRun words; the sums are written where the compiler cannot drop them.
__global__ void __launch_bounds__(kReadThreads) read(const uint4* in, int64_t num_runs, uint32_t* out) {
  uint32_t sum = 0;
  for (int64_t run = blockIdx.x; run < num_runs; run += gridDim.x) {
    const uint4* from = in + run * kReadRun + threadIdx.x;
    uint4 v[kReadUnroll];
#pragma unroll
    for (int j = 0; j < kReadUnroll; ++j) v[j] = __ldcs(from + j * kReadThreads);
#pragma unroll
    for (int j = 0; j < kReadUnroll; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x9e3779b9u) out[blockIdx.x % 64] = sum;
}

// Adds a hash of the words and their positions to *sum; it does not depend on the order of addition.
__global__ void hash(const uint32_t* words, int64_t n, unsigned long long* sum) {
  unsigned long long local = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    unsigned long long x = words[i] + 0x9e3779b97f4a7c15ull * (i + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    local += x ^ (x >> 31);
  }
  atomicAdd(sum, local);
}

}  // namespace kernel

namespace {

constexpr int64_t kGiB = 1ll << 30;
constexpr double kTargetSeconds = 4e-3;         // of one graph replay
constexpr int kReplays = 15, kSlowReplays = 3;  // slow: a replay takes more than kSlowSeconds
constexpr double kSlowSeconds = 0.03;

struct Captured {
  std::shared_ptr<CUgraphExec_st> exec;
  int num_runs = 0;
  double once_seconds = 0;  // of a pass over all sets of inputs
};

// The stream, events and device properties of one benchmark.
class Bench {
 public:
  Bench() {
    CUDA_CHECK(cudaGetDevice(&device_));
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, device_));
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreate(&begin_));
    CUDA_CHECK(cudaEventCreate(&end_));
  }
  ~Bench() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  const cudaDeviceProp& properties() const { return properties_; }
  Stream stream() const { return {stream_}; }

  template <class Enqueue>
  double seconds_of(Enqueue&& enqueue) {
    CUDA_CHECK(cudaEventRecord(begin_, stream_));
    enqueue();
    CUDA_CHECK(cudaEventRecord(end_, stream_));
    CUDA_CHECK(cudaEventSynchronize(end_));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return double(milliseconds) * 1e-3;
  }

  // A graph of `runs` in turn, again and again until a replay takes about kTargetSeconds.
  Captured capture(const std::vector<std::function<void(Stream)>>& runs) {
    const auto pass = [&] {
      for (const auto& run : runs) run(stream());
    };
    pass();  // loads modules, picks algorithms
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    Captured r;
    r.once_seconds = seconds_of(pass);
    const int passes = std::clamp(int(kTargetSeconds / std::max(r.once_seconds, 1e-6)), 1, 64);
    r.num_runs = passes * int(runs.size());
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    try {
      for (int i = 0; i < passes; ++i) pass();
    } catch (...) {
      cudaStreamEndCapture(stream_, &graph);  // the next case uses the stream
      throw;
    }
    CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    cudaGraphExec_t exec = nullptr;
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    r.exec = std::shared_ptr<CUgraphExec_st>(exec, cudaGraphExecDestroy);
    return r;
  }

  // Seconds of one run of each, ascending. Replays alternate, so that all run at the same clocks, which a GPU lowers
  // under load.
  std::vector<std::vector<double>> time(const std::vector<Captured>& all) {
    std::vector<std::vector<double>> seconds(all.size());
    double slowest = 0;
    for (const Captured& r : all) slowest = std::max(slowest, r.once_seconds);
    const int replays = slowest > kSlowSeconds ? kSlowReplays : kReplays;
    for (int i = -1; i < replays; ++i)
      for (size_t j = 0; j < all.size(); ++j) {
        const double s = seconds_of([&] { CUDA_CHECK(cudaGraphLaunch(all[j].exec.get(), stream_)); });
        if (i >= 0) seconds[j].push_back(s / all[j].num_runs);
      }
    for (std::vector<double>& s : seconds) std::sort(s.begin(), s.end());
    return seconds;
  }
  double best_seconds(const std::function<void(Stream)>& run) { return time({capture({run})})[0][0]; }

  uint64_t hash_of(const void* data, int64_t num_bytes) {
    unsigned long long* sum = nullptr;
    CUDA_CHECK(cudaMallocAsync(&sum, sizeof *sum, stream_));
    CUDA_CHECK(cudaMemsetAsync(sum, 0, sizeof *sum, stream_));
    kernel::hash<<<1024, 256, 0, stream_>>>(static_cast<const uint32_t*>(data), num_bytes / 4, sum);
    CUDA_CHECK(cudaGetLastError());
    unsigned long long result = 0;
    CUDA_CHECK(cudaMemcpyAsync(&result, sum, sizeof result, cudaMemcpyDeviceToHost, stream_));
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    CUDA_CHECK(cudaFreeAsync(sum, stream_));
    return result;
  }

 private:
  int device_ = 0;
  cudaDeviceProp properties_ = {};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// The best of few persistent blocks and many blocks that each read a little.
double read_roof(Bench& bench, Memory& memory) {
  memory.reset();
  auto* sums = memory.alloc<uint32_t>(64);
  constexpr int64_t kRunBytes = kernel::kReadRun * 16;
  const int64_t num_runs = (std::min<int64_t>(memory.capacity(), 16 * kGiB) - 4096) / kRunBytes;
  auto* data = reinterpret_cast<const uint4*>(memory.f8(num_runs * kRunBytes));
  CUDA_CHECK(cudaDeviceSynchronize());
  double best = 1e30;
  for (const int64_t blocks : {int64_t{current_device_info().num_multiprocessors} * 4, num_runs / 16, num_runs})
    best = std::min(best, bench.best_seconds([=](Stream stream) {
      kernel::read<<<unsigned(blocks), kernel::kReadThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(
          data, num_runs, sums);
      CUDA_CHECK(cudaGetLastError());
    }));
  return double(num_runs * kRunBytes) / best;
}

// 0 when cuBLASLt cannot do it; then *why says so.
double matrix_roof(Bench& bench, Memory& memory, DType dtype, std::string* why) {
  double best = 0;
  for (const int64_t m : {4096, 8192}) {
    memory.reset();
    LtMatmulArgs args{.m = m, .n = 7168, .k = 16384, .dtype = dtype};
    if (dtype == DType::kF8E4M3) {
      args.x = memory.f8(args.m * args.k);
      args.w = memory.f8(args.n * args.k);
      args.scales = LtScales::kTensor;
      args.fast_accumulation = true;
      args.x_scales = memory.positive(1, 1e-3f, 2e-3f);
      args.w_scales = memory.positive(1, 1e-3f, 2e-3f);
    } else {
      args.x = memory.bf16(args.m * args.k);
      args.w = memory.bf16(args.n * args.k);
    }
    args.out = memory.alloc<__nv_bfloat16>(args.m * args.n);
    args.workspace = memory.alloc<std::byte>(kLtWorkspaceBytes);
    CUDA_CHECK(cudaDeviceSynchronize());
    if (std::string reason = CublasLt::get().why_unsupported(args); !reason.empty()) {
      *why = reason;
      return 0;
    }
    const double seconds = bench.best_seconds([args](Stream stream) { CublasLt::get().matmul(args, stream); });
    best = std::max(best, 2.0 * double(args.m) * double(args.n) * double(args.k) / seconds);
  }
  return best;
}

KernelRoofs measure_roofs(Bench& bench, Memory& memory) {
  KernelRoofs roofs;
  roofs.read_bytes_per_second = read_roof(bench, memory);
  roofs.bf16_flops_per_second = matrix_roof(bench, memory, DType::kBF16, &roofs.missing);
  roofs.f8_flops_per_second = matrix_roof(bench, memory, DType::kF8E4M3, &roofs.missing);
  return roofs;
}

// Which roof bounds the case, and the fraction of it that was reached.
void judge(const Case& c, const KernelRoofs& roofs, KernelResult& r) {
  const double rate = c.unit == Unit::kF8     ? roofs.f8_flops_per_second
                      : c.unit == Unit::kBf16 ? roofs.bf16_flops_per_second
                                              : 0;
  const double memory_seconds = c.bytes / roofs.read_bytes_per_second, unit_seconds = rate > 0 ? c.flops / rate : 0;
  r.bound = unit_seconds > memory_seconds ? (c.unit == Unit::kF8 ? "f8" : "bf16") : "memory";
  if (r.seconds > 0) r.roof_share = std::max(memory_seconds, unit_seconds) / r.seconds;
}

KernelResult measure(Bench& bench, Memory& memory, const Case& c, const KernelRoofs& roofs) {
  KernelResult r{.kernel = c.kernel, .shape = c.shape, .bytes = c.bytes, .flops = c.flops};
  memory.reset();
  // Sets of inputs: together four times what L2 holds, two at least.
  std::vector<Work> sets;
  const int64_t enough = 4 * int64_t(bench.properties().l2CacheSize);
  while (sets.size() < 2 || (memory.used() < enough && sets.size() < 256)) sets.push_back(c.make(memory));
  CUDA_CHECK(cudaDeviceSynchronize());
  const auto column = [&](auto&& pick) {
    std::vector<std::function<void(Stream)>> runs;
    for (const Work& set : sets) runs.push_back(pick(set));
    return runs;
  };
  for (const std::string& name : c.peers) r.peers.push_back({.name = name});
  // Ours, then the peers; `to` and `error` of those that could be captured.
  std::vector<Captured> captured;
  std::vector<double*> to;
  const auto capture = [&](auto&& pick, double* seconds, std::string* error) {
    try {
      captured.push_back(bench.capture(column(pick)));
      to.push_back(seconds);
    } catch (const Error& e) {
      *error = e.what();
    }
  };
  if (sets[0].run) capture([](const Work& w) { return w.run; }, &r.seconds, &r.error);
  if (sets[0].run && r.error.empty()) r.output_hash = bench.hash_of(sets[0].out, sets[0].out_bytes);
  for (size_t p = 0; p < c.peers.size(); ++p)
    capture([p](const Work& w) { return w.peers[p]; }, &r.peers[p].seconds, &r.peers[p].error);
  const std::vector<std::vector<double>> seconds = bench.time(captured);
  for (size_t i = 0; i < to.size(); ++i) *to[i] = seconds[i][seconds[i].size() / 2];
  judge(c, roofs, r);
  return r;
}

int64_t pool_bytes() {
  size_t free_bytes = 0, total_bytes = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  return std::min<int64_t>(24 * kGiB, int64_t(free_bytes / 10 * 7));
}

std::string device_text(const cudaDeviceProp& p) {
  int runtime = 0, driver = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  CUDA_CHECK(cudaDriverGetVersion(&driver));
  return fmt::format("{}, {} multiprocessors, {:.0f} GiB, {:.0f} MiB L2; CUDA {}.{}, driver for {}.{}", p.name,
                     current_device_info().num_multiprocessors, double(p.totalGlobalMem) / double(kGiB),
                     double(p.l2CacheSize) / 1048576.0, runtime / 1000, runtime % 1000 / 10, driver / 1000,
                     driver % 1000 / 10);
}

}  // namespace

double read_bandwidth() {
  Bench bench;
  Memory memory(pool_bytes());
  return read_roof(bench, memory);
}

KernelReport run(const KernelBenchOptions& options, const std::regex& filter) {
  Cases all, cases;
  for (const KernelShape& shape : options.shapes) {
    add_gemm_cases(shape, all);
    add_grouped_cases(shape, all);
    add_attention_cases(shape, all);
    add_moe_cases(shape, all);
    add_elementwise_cases(shape, all);
    add_sampling_cases(shape, all);
    add_kv_cases(shape, all);
  }
  for (Case& c : all)
    if (std::regex_search(c.kernel + " " + c.shape, filter)) cases.push_back(std::move(c));

  if (cases.empty()) return {};

  Bench bench;
  Memory memory(pool_bytes());
  KernelReport report;
  report.device = device_text(bench.properties());
  const CublasLt& library = CublasLt::get();
  report.library = library.is_present() ? "cuBLASLt " + library.version() : library.why_absent();
  const int total = int(cases.size()) + 1;
  const auto progress = [&](int done, const std::string& what) {
    if (options.progress) options.progress(done, total, what);
  };
  progress(0, "roofs");
  report.roofs = measure_roofs(bench, memory);
  for (const Case& c : cases) {
    progress(int(report.results.size()) + 1, c.kernel + " " + c.shape);
    report.results.push_back(measure(bench, memory, c, report.roofs));
  }
  progress(total, "");
  return report;
}

}  // namespace moectl::cuda::bench
