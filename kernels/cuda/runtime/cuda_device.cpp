#include "kernels/cuda/runtime/cuda_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "core/base/check.h"
#include "kernels/cuda/comm/peer.h"
#include "kernels/cuda/runtime/check.h"

namespace moectl::cuda {

// ------------------------------------------------------------------------------------------------ memory

CudaDevice::CudaDevice(int ordinal, bool portable) : ordinal_(ordinal), portable_(portable) {
  activate();
  const char* blocking = std::getenv("CUDA_LAUNCH_BLOCKING");
  blocking_ = blocking && std::string_view(blocking) == "1";
  for (cudaStream_t* stream : {&stream_, &side_}) CUDA_CHECK(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&forked_, &joined_}) CUDA_CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
}

CudaDevice::~CudaDevice() {
  cudaSetDevice(ordinal_);
  for (cudaEvent_t event : {forked_, joined_}) cudaEventDestroy(event);
  for (cudaStream_t stream : {side_, stream_}) cudaStreamDestroy(stream);
}

void CudaDevice::activate() const {
  CUDA_CHECK(cudaSetDevice(ordinal_));
}

Device::Memory CudaDevice::memory() const {
  activate();
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {int64_t(free), int64_t(total)};
}

Buffer CudaDevice::allocate(int64_t num_bytes) {
  CHECK(num_bytes >= 0, "allocation of {} bytes", num_bytes);
  activate();
  const size_t size = size_t(std::max<int64_t>(num_bytes, 1));
  void* p = nullptr;
  if (const cudaError_t status = cudaMalloc(&p, size); status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // reported here: no later call shall find it
    const Memory m = memory();
    throw Error(Code::kResourceExhausted,
                fmt::format("cannot allocate {:.2f} GB on GPU {}: {:.2f} of {:.2f} GB are free; lower "
                            "--kv-cache-memory-bytes or --max-num-batched-tokens, or end what else uses the GPU",
                            double(size) / 1e9, ordinal_, double(m.free_bytes) / 1e9, double(m.total_bytes) / 1e9));
  } else {
    CUDA_CHECK(status);
  }
  return Buffer(static_cast<std::byte*>(p), [ordinal = ordinal_](std::byte* q) {
    cudaSetDevice(ordinal);
    cudaFree(q);
  });
}

Buffer CudaDevice::alloc(int64_t num_bytes) {
  Buffer buffer = allocate(num_bytes);
  CUDA_CHECK(cudaMemsetAsync(buffer.get(), 0, size_t(std::max<int64_t>(num_bytes, 1)), stream_));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  return buffer;
}

Buffer CudaDevice::alloc_host(int64_t num_bytes) {
  CHECK(num_bytes >= 0, "allocation of {} bytes", num_bytes);
  activate();
  const size_t size = size_t(std::max<int64_t>(num_bytes, 1));
  void* p = nullptr;
  CUDA_CHECK(cudaMallocHost(&p, size));
  std::memset(p, 0, size);
  return Buffer(static_cast<std::byte*>(p), [](std::byte* q) { cudaFreeHost(q); });
}

void CudaDevice::upload(void* device, const void* host, int64_t num_bytes) {
  if (num_bytes <= 0) return;  // empty batches have null pointers
  activate();
  CUDA_CHECK(cudaMemcpyAsync(device, host, size_t(num_bytes), cudaMemcpyHostToDevice, stream_));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
}

void CudaDevice::copy(void* to, const void* from, int64_t num_bytes, Stream s) {
  run("copy", s, [&](Stream stream) {
    if (num_bytes > 0)
      CUDA_CHECK(
          cudaMemcpyAsync(to, from, size_t(num_bytes), cudaMemcpyDefault, static_cast<cudaStream_t>(stream.handle)));
  });
}

// ------------------------------------------------------------------------------------------------ streams

void CudaDevice::synchronize(Stream s) {
  check_done(cudaSetDevice(ordinal_));
  check_done(cudaStreamSynchronize(s.handle ? static_cast<cudaStream_t>(s.handle) : stream_));
  if (unjoined_) check_done(cudaStreamSynchronize(side_));  // left by an operation that failed amid fork()
}

Event CudaDevice::record_event(Stream s) {
  check_done(cudaSetDevice(ordinal_));
  cudaEvent_t event = nullptr;
  check_done(cudaEventCreate(&event));
  Event owner(event, [ordinal = ordinal_](void* e) {
    cudaSetDevice(ordinal);
    cudaEventDestroy(static_cast<cudaEvent_t>(e));
  });
  check_done(cudaEventRecord(event, s.handle ? static_cast<cudaStream_t>(s.handle) : stream_));
  return owner;
}

void CudaDevice::wait(const Event& event) {
  check_done(cudaSetDevice(ordinal_));
  check_done(cudaEventSynchronize(static_cast<cudaEvent_t>(event.get())));
}

double CudaDevice::seconds_between(const Event& begin, const Event& end) {
  float ms = 0;
  CUDA_CHECK(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(begin.get()), static_cast<cudaEvent_t>(end.get())));
  return double(ms) / 1e3;
}

void CudaDevice::fork(const std::function<void()>& work) {
  join();
  activate();
  check_done(cudaEventRecord(forked_, stream_));
  check_done(cudaStreamWaitEvent(side_, forked_));
  unjoined_ = true;
  on_side_ = true;
  try {
    work();
  } catch (...) {
    on_side_ = false;
    throw;
  }
  on_side_ = false;
  check_done(cudaEventRecord(joined_, side_));
}

void CudaDevice::join() {
  if (!std::exchange(unjoined_, false)) return;
  activate();
  check_done(cudaStreamWaitEvent(stream_, joined_));
}

// ------------------------------------------------------------------------------------------------ graphs

Graph CudaDevice::capture(const std::function<void()>& work) {
  activate();
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  CUDA_CHECK(status);
  return Graph(exec, [ordinal = ordinal_](void* e) {
    cudaSetDevice(ordinal);
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(e));
  });
}

void CudaDevice::replay(const Graph& graph, Stream s) {
  CHECK(graph != nullptr, "replay of no graph");
  run("a CUDA graph", s, [&](Stream stream) {
    CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.get()), static_cast<cudaStream_t>(stream.handle)));
  });
}

// Powers of two up to 8, then multiples of 8 up to 64, of 16 up to 256, of 32.
int64_t CudaDevice::graph_rows(int64_t rows) const {
  int64_t rounded = 1;
  while (rounded < rows && rounded < 8) rounded *= 2;
  const int64_t step = rows <= 64 ? 8 : rows <= 256 ? 16 : 32;
  return rows <= 8 ? rounded : (rows + step - 1) / step * step;
}

// ------------------------------------------------------------------------------------------------ peers

std::string CudaDevice::connect(int ordinal) {
  if (ordinal == ordinal_) return "";  // ranks that share a GPU
  activate();
  int can = 0;
  CUDA_CHECK(cudaDeviceCanAccessPeer(&can, ordinal_, ordinal));
  if (!can)
    return fmt::format(
        "GPU {} cannot address the memory of GPU {}: there is no peer access between them (nvidia-smi topo -p2p r)",
        ordinal_, ordinal);
  const cudaError_t status = cudaDeviceEnablePeerAccess(ordinal, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled)
    cudaGetLastError();  // by another rank of this process
  else
    CUDA_CHECK(status);
  return "";
}

void CudaDevice::barrier(const PeerBarrierArgs& args, Stream s) {
  run("a barrier of ranks", s, [&](Stream stream) { peer_barrier(args, stream); });
}

void CudaDevice::sum(const PeerSumArgs& args, Stream s) {
  run("a sum over ranks", s, [&](Stream stream) { peer_sum(args, stream); });
}

void CudaDevice::mark(const PeerMarkArgs& args, Stream s) {
  run("a mark", s, [&](Stream stream) { peer_mark(args, stream); });
}

void CudaDevice::launch(const char* operation, Stream s, const std::function<void(Stream)>& call) {
  run(operation, s, call);
}

void CudaDevice::all_reduce(const PeerAllReduceArgs& args, Stream s) {
  run("all_reduce", s, [&](Stream stream) { peer_all_reduce(args, stream); });
}

// ------------------------------------------------------------------------------------------------ errors

// An error of the device shows at the next call, whichever operation caused it.
void CudaDevice::check_done(cudaError_t status) const {
  if (status != cudaSuccess) throw lost(status, last_operation_);
}

// Once an operation has failed on the device, every later call fails, until the process ends.
Error CudaDevice::lost(cudaError_t status, const char* operation) const {
  const std::string where = blocking_ ? fmt::format("in {}", operation)
                                      : fmt::format(
                                            "in {} or an operation before it (started with "
                                            "CUDA_LAUNCH_BLOCKING=1 in the environment it will say which)",
                                            operation);
  return Error(Code::kUnavailable,
               fmt::format("GPU {}: {}, {}; nothing runs on the GPU any more: restart this instance", ordinal_,
                           cudaGetErrorString(status), where));
}

// Waits for this rank's streams alone: another rank on this GPU may wait on it for this one, until its thread knows of
// the failure.
Error CudaDevice::launch_failed(const char* operation, const Error& why) const {
  cudaError_t status = cudaStreamSynchronize(stream_);
  if (status == cudaSuccess) status = cudaStreamSynchronize(side_);
  const bool capturing = status >= cudaErrorStreamCaptureUnsupported && status <= cudaErrorStreamCaptureWrongThread;
  if (status != cudaSuccess && !capturing) return lost(status, operation);
  return Error(why.code(), fmt::format("GPU {}: {}: {}; restart this instance", ordinal_, operation, why.what()));
}

}  // namespace moectl::cuda
