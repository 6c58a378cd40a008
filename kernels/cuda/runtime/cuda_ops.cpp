// CudaOps: memory, streams and graphs, and the choice of kernel for each operation. `precise`: f32 activations in the
// plain kernels. Else products go to the tensor cores (cuda_ops_fast.cpp), where the weight fits.
#include "kernels/cuda/runtime/cuda_ops.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/base/check.h"
#include "kernels/cuda/gemm/cublaslt.h"
#include "kernels/cuda/mla/mla_prefill_sm90.h"
#include "kernels/cuda/runtime/device.h"
#include "kernels/cuda/runtime/kernels.h"
#include "kernels/cuda/sample/sample.h"

namespace moectl::cuda {

// Raise when any kernel changes a bit of its results.
inline constexpr int kKernelVersion = 3;

std::unique_ptr<Ops> make_cuda_ops(const OpsOptions& options) {
  return std::make_unique<CudaOps>(options);
}

// ------------------------------------------------------------------------------------------------ memory and streams

CudaOps::CudaOps(const OpsOptions& options)
    : device_(options.device_index),
      precise_(options.precise),
      deterministic_(options.deterministic),
      portable_(options.portable) {
  activate();
  const ComputeCapability card = compute_capability(device_);
  card_ = fmt::format("sm{}{}", card.major, card.minor);
  hopper_ = takes_hopper_kernels() && !portable_;
  load_threads_ = std::max(1, options.num_threads);
  const char* blocking = std::getenv("CUDA_LAUNCH_BLOCKING");
  blocking_ = blocking && std::string_view(blocking) == "1";
  for (cudaStream_t* stream : {&stream_, &side_}) CUDA_CHECK(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&parted_, &met_}) CUDA_CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  flag_ = alloc(sizeof(int));
}

CudaOps::~CudaOps() {
  cudaSetDevice(device_);
  for (cudaEvent_t event : {parted_, met_}) cudaEventDestroy(event);
  for (cudaStream_t stream : {side_, stream_}) cudaStreamDestroy(stream);
}

void CudaOps::activate() const {
  CUDA_CHECK(cudaSetDevice(device_));
}

Staging& CudaOps::staging() {
  if (!staging_) staging_ = std::make_unique<Staging>(load_threads_);
  return *staging_;
}

std::string CudaOps::numerics_id() const {
  return fmt::format("cuda-{}-{}{}{}-{}", card_, precise_ ? "precise" : "fast", deterministic_ ? "-deterministic" : "",
                     portable_ ? "-portable" : "", kKernelVersion);
}

Ops::Memory CudaOps::memory() const {
  activate();
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {int64_t(free), int64_t(total)};
}

std::vector<DType> CudaOps::kv_dtypes() const {
  if (precise_) return {DType::kF32, DType::kBF16};
  return {DType::kBF16, DType::kF32};
}

Buffer CudaOps::allocate(int64_t num_bytes) {
  CHECK(num_bytes >= 0, "allocation of {} bytes", num_bytes);
  activate();
  const size_t size = size_t(std::max<int64_t>(num_bytes, 1));
  void* p = nullptr;
  if (const cudaError_t status = cudaMalloc(&p, size); status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is told here, and no later call shall find it
    const Memory m = memory();
    throw Error(Code::kResourceExhausted,
                fmt::format("cannot allocate {:.2f} GB on GPU {}: {:.2f} of {:.2f} GB are free; lower "
                            "--kv-cache-memory-bytes or --max-num-batched-tokens, or end what else uses the GPU",
                            double(size) / 1e9, device_, double(m.free_bytes) / 1e9, double(m.total_bytes) / 1e9));
  } else {
    CUDA_CHECK(status);
  }
  return Buffer(static_cast<std::byte*>(p), [device = device_](std::byte* q) {
    cudaSetDevice(device);
    cudaFree(q);
  });
}

Buffer CudaOps::alloc(int64_t num_bytes) {
  Buffer buffer = allocate(num_bytes);
  CUDA_CHECK(cudaMemsetAsync(buffer.get(), 0, size_t(std::max<int64_t>(num_bytes, 1)), stream_));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  return buffer;
}

Buffer CudaOps::alloc_host(int64_t num_bytes) {
  CHECK(num_bytes >= 0, "allocation of {} bytes", num_bytes);
  activate();
  const size_t size = size_t(std::max<int64_t>(num_bytes, 1));
  void* p = nullptr;
  CUDA_CHECK(cudaMallocHost(&p, size));
  std::memset(p, 0, size);
  return Buffer(static_cast<std::byte*>(p), [](std::byte* q) { cudaFreeHost(q); });
}

void CudaOps::upload(void* device, const void* host, int64_t num_bytes) {
  if (num_bytes <= 0) return;  // empty batches have null pointers
  activate();
  operands_.forget(device, num_bytes);
  CUDA_CHECK(cudaMemcpyAsync(device, host, size_t(num_bytes), cudaMemcpyHostToDevice, stream_));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
}

void CudaOps::copy(void* to, const void* from, int64_t num_bytes, Stream s) {
  run("copy", s, to, num_bytes, [&](Stream stream) {
    if (num_bytes > 0)
      CUDA_CHECK(
          cudaMemcpyAsync(to, from, size_t(num_bytes), cudaMemcpyDefault, static_cast<cudaStream_t>(stream.handle)));
  });
}

void CudaOps::synchronize(Stream s) {
  check_done(cudaSetDevice(device_));
  check_done(cudaStreamSynchronize(s.handle ? static_cast<cudaStream_t>(s.handle) : stream_));
}

Mark CudaOps::mark(Stream s) {
  check_done(cudaSetDevice(device_));
  cudaEvent_t event = nullptr;
  check_done(cudaEventCreate(&event));
  Mark mark(event, [device = device_](void* e) {
    cudaSetDevice(device);
    cudaEventDestroy(static_cast<cudaEvent_t>(e));
  });
  check_done(cudaEventRecord(event, s.handle ? static_cast<cudaStream_t>(s.handle) : stream_));
  return mark;
}

void CudaOps::wait(const Mark& mark) {
  check_done(cudaSetDevice(device_));
  check_done(cudaEventSynchronize(static_cast<cudaEvent_t>(mark.get())));
}

double CudaOps::seconds_between(const Mark& begin, const Mark& end) {
  float ms = 0;
  CUDA_CHECK(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(begin.get()), static_cast<cudaEvent_t>(end.get())));
  return double(ms) / 1e3;
}

// An error of the device shows at the next call, whichever operation met it.
void CudaOps::check_done(cudaError_t status) const {
  if (status != cudaSuccess) throw lost(status, last_operation_);
}

// Once an operation has failed on the device, every later call fails, until the process ends.
Error CudaOps::lost(cudaError_t status, const char* operation) const {
  const std::string where = blocking_ ? fmt::format("in {}", operation)
                                      : fmt::format(
                                            "in {} or an operation before it (started with "
                                            "CUDA_LAUNCH_BLOCKING=1 in the environment it will say which)",
                                            operation);
  return Error(Code::kUnavailable,
               fmt::format("GPU {}: {}, {}; nothing runs on the GPU any more: restart this instance", device_,
                           cudaGetErrorString(status), where));
}

void CudaOps::beside(const std::function<void()>& work) {
  rejoin();
  activate();
  check_done(cudaEventRecord(parted_, stream_));
  check_done(cudaStreamWaitEvent(side_, parted_));
  apart_ = true;
  set_side(true);
  try {
    work();
  } catch (...) {
    set_side(false);
    throw;
  }
  set_side(false);
  check_done(cudaEventRecord(met_, side_));
}

void CudaOps::set_side(bool on_side) {
  on_side_ = on_side;
  operands_.set_side(on_side);
}

void CudaOps::rejoin() {
  if (!std::exchange(apart_, false)) return;
  operands_.meet();
  activate();
  check_done(cudaStreamWaitEvent(stream_, met_));
}

Graph CudaOps::capture(const std::function<void()>& work) {
  if (blocking_) return nullptr;  // recorded kernels would not be waited for
  activate();
  operands_.clear();  // a replay finds no copies made before it
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    operands_.clear();
    throw;
  }
  operands_.clear();
  CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  CUDA_CHECK(status);
  return Graph(exec, [device = device_](void* e) {
    cudaSetDevice(device);
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(e));
  });
}

void CudaOps::replay(const Graph& graph, Stream s) {
  CHECK(graph != nullptr, "replay of no graph");
  run("a recorded step", s, nullptr, 0, [&](Stream stream) {
    operands_.clear();
    CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.get()), static_cast<cudaStream_t>(stream.handle)));
  });
}

// ------------------------------------------------------------------------------------------------ scratch

CudaOps::Regions CudaOps::regions(const ScratchShape& shape) const {
  Regions r;
  auto take = [&](int64_t num_bytes) {
    const int64_t begin = r.num_bytes;
    r.num_bytes += (num_bytes + 255) / 256 * 256;
    return begin;
  };
  r.num_counters = attention_counters(shape.max_tokens, shape.num_heads);
  r.counters = take(r.num_counters * 4);
  r.attention_bytes = attention_scratch_bytes(shape.max_tokens, shape.num_heads, shape.out_head_size);
  r.attention = take(r.attention_bytes);
  // Not where a row's bits must not depend on its chunk, nor where sizes or formats rule it out.
  if (hopper_ && !precise_ && !deterministic_ && mla_prefill_sm90_fits(shape)) {
    r.prefill_bytes = mla_prefill_sm90_scratch_bytes(shape.max_tokens, shape.num_heads);
    r.prefill = take(r.prefill_bytes);
  }
  r.counts = take(shape.num_experts * 4);
  if (shape.vocab_size > 0) r.sampling = take(sample_scratch_bytes(shape.max_sampled_rows, shape.vocab_size));
  if (!precise_) {
    const int64_t expert_k = shape.max_expert_k ? shape.max_expert_k : shape.max_linear_k;
    for (int64_t& workspace : r.lt_workspace)
      workspace = take(CublasLt::get().is_present() && !deterministic_ ? int64_t{kLtWorkspaceBytes} : 0);
    r.operand_bytes[OperandCache::kTokens] = operand_bytes(shape.max_tokens, shape.max_linear_k);
    r.operand_bytes[OperandCache::kExperts] = operand_bytes(shape.max_expert_rows, expert_k);
    for (int pool = 0; pool < 2; ++pool)
      r.operands[pool] = take(OperandCache::kNumPlaces[pool] * r.operand_bytes[pool]);
  }
  r.num_bytes = std::max<int64_t>(r.num_bytes, 256);
  return r;
}

int64_t CudaOps::scratch_bytes(const ScratchShape& shape) const {
  scratch_shape_ = shape;
  return regions(shape).num_bytes;
}

void CudaOps::set_scratch(Buffer buffer, int64_t num_bytes) {
  scratch_ = std::move(buffer);
  regions_ = std::make_unique<Regions>(regions(scratch_shape_));
  CHECK(regions_->num_bytes <= num_bytes, "scratch of {} bytes where {} were asked for", num_bytes,
        regions_->num_bytes);
  for (auto pool : {OperandCache::kTokens, OperandCache::kExperts})
    operands_.set_memory(pool, scratch_.get() + regions_->operands[pool], regions_->operand_bytes[pool]);
}

// ------------------------------------------------------------------------------------------------ operations

template <class Launch>
void CudaOps::run(const char* name, Stream stream, const void* out, int64_t out_bytes, Launch&& launch) {
  try {
    activate();
    if (out_bytes > 0) operands_.forget(out, out_bytes);
    const PortableLaunches portable(portable_);
    launch(on_side_ ? Stream{side_} : stream.handle ? stream : Stream{stream_});
  } catch (const Error& e) {
    if (e.code() != Code::kUnavailable) throw;
    const cudaError_t status = cudaDeviceSynchronize();
    const bool recording = status >= cudaErrorStreamCaptureUnsupported && status <= cudaErrorStreamCaptureWrongThread;
    if (status != cudaSuccess && !recording) throw lost(status, name);
    throw Error(e.code(), fmt::format("GPU {}: {}: {}; restart this instance", device_, name, e.what()));
  }
  last_operation_ = name;
}

namespace {

template <class T>
int64_t bytes_of(const View<T>& v) {
  return v.size() * int64_t(sizeof(T));
}
int64_t bytes_of(const TypedView& v) {
  return v.num_bytes();
}

}  // namespace

void CudaOps::embed(const EmbedArgs& a, Stream s) {
  run("embed", s, a.out.data, bytes_of(a.out), [&](Stream stream) { cuda::embed(a, stream); });
}

void CudaOps::rms_norm(const RmsNormArgs& a, Stream s) {
  operands_.forget(a.residual.data, bytes_of(a.residual));
  run("rms_norm", s, a.out.data, bytes_of(a.out), [&](Stream stream) {
    if (!fast_norm(a, stream)) cuda::rms_norm(a, stream);
  });
}

void CudaOps::linear(const LinearArgs& a, Stream s) {
  run("linear", s, a.out.data, bytes_of(a.out), [&](Stream stream) {
    if (!fast_linear(a, stream)) cuda::linear(a, numerics(), stream);
  });
}

void CudaOps::gather(const GatherArgs& a, Stream s) {
  run("gather", s, a.out.data, bytes_of(a.out), [&](Stream stream) { cuda::gather(a, stream); });
}

void CudaOps::rope_table(const RopeTableArgs& a, Stream s) {
  run("rope_table", s, a.cos_sin.data, bytes_of(a.cos_sin), [&](Stream stream) { cuda::rope_table(a, stream); });
}

void CudaOps::rope(const RopeArgs& a, Stream s) {
  run("rope", s, a.x.data, bytes_of(a.x), [&](Stream stream) { cuda::rope(a, stream); });
}

void CudaOps::gqa_cache_write(const GqaCacheWriteArgs& a, Stream s) {
  run("gqa_cache_write", s, nullptr, 0, [&](Stream stream) { cuda::gqa_cache_write(a, stream); });
}

AttentionScratch CudaOps::attention_scratch() const {
  AttentionScratch scratch = {.deterministic = deterministic_, .plain = precise_};
  if (regions_) {
    scratch.data = scratch_.get() + regions_->attention;
    scratch.num_bytes = regions_->attention_bytes;
    scratch.counters = reinterpret_cast<int32_t*>(scratch_.get() + regions_->counters);
    scratch.num_counters = regions_->num_counters;
  }
  return scratch;
}

void CudaOps::gqa_attention(const GqaAttentionArgs& a, Stream s) {
  run("gqa_attention", s, a.out.data, bytes_of(a.out),
      [&](Stream stream) { cuda::gqa_attention(a, attention_scratch(), stream); });
}

void CudaOps::mla_query(const MlaQueryArgs& a, Stream s) {
  run("mla_query", s, a.out.data, bytes_of(a.out), [&](Stream stream) {
    if (!fast_mla_query(a, stream)) cuda::mla_query(a, numerics(), stream);
  });
}

void CudaOps::mla_cache_write(const MlaCacheWriteArgs& a, Stream s) {
  run("mla_cache_write", s, nullptr, 0, [&](Stream stream) { cuda::mla_cache_write(a, stream); });
}

void CudaOps::mla_attention(const MlaAttentionArgs& a, Stream s) {
  run("mla_attention", s, a.out.data, bytes_of(a.out),
      [&](Stream stream) { cuda::mla_attention(a, attention_scratch(), stream); });
}

void CudaOps::mla_output(const MlaOutputArgs& a, Stream s) {
  run("mla_output", s, a.out.data, bytes_of(a.out), [&](Stream stream) {
    if (!fast_mla_output(a, stream)) cuda::mla_output(a, numerics(), stream);
  });
}

bool CudaOps::mla_prefill(const MlaPrefillArgs& a, Stream s) {
  const int64_t n = a.q.dim(0), heads = a.q.dim(1);
  if (!regions_ || mla_prefill_sm90_scratch_bytes(n, heads) > regions_->prefill_bytes) return false;
  if (!mla_prefill_sm90_fits(a) || !mla_prefill_sm90_pays(n, heads, a.first_position + n)) return false;
  run("mla_prefill", s, a.out.data, bytes_of(a.out),
      [&](Stream stream) { mla_prefill_sm90(a, scratch_.get() + regions_->prefill, stream); });
  return true;
}

void CudaOps::moe_gate(const MoeGateArgs& a, Stream s) {
  run("moe_gate", s, nullptr, 0, [&](Stream stream) { cuda::moe_gate(a, stream); });
}

void CudaOps::moe_permute(const MoePermuteArgs& a, Stream s) {
  CHECK(regions_ && a.expert_offsets.dim(0) - 1 <= scratch_shape_.num_experts, "moe_permute of {} experts: no scratch",
        a.expert_offsets.dim(0) - 1);
  run("moe_permute", s, a.x.data, bytes_of(a.x), [&](Stream stream) {
    const RowCopies copies = expert_copies(a);
    const bool only_copies = copies.fp8.data || copies.bf16;
    unwritten_ = only_copies ? a.x.data : nullptr;
    cuda::moe_permute(a, reinterpret_cast<int32_t*>(scratch_.get() + regions_->counts), copies, only_copies, stream);
  });
}

void CudaOps::moe_experts(const MoeExpertsArgs& a, Stream s) {
  operands_.forget(a.hidden.data, bytes_of(a.hidden));
  run("moe_experts", s, a.out.data, bytes_of(a.out), [&](Stream stream) {
    if (fast_experts(a, stream)) return;
    CHECK(a.x.data != unwritten_, "moe_experts: of its rows there is a copy alone");
    cuda::moe_experts(a, numerics(), stream);
  });
}

void CudaOps::moe_locate(const MoeLocateArgs& a, Stream s) {
  run("moe_locate", s, nullptr, 0, [&](Stream stream) { cuda::moe_locate(a, stream); });
}

void CudaOps::moe_combine(const MoeCombineArgs& a, Stream s) {
  run("moe_combine", s, a.out.data, bytes_of(a.out), [&](Stream stream) { cuda::moe_combine(a, stream); });
}

void CudaOps::sample_rows(const SampleRowsArgs& a, Stream s) {
  CHECK(regions_ && a.logits.dim(0) <= scratch_shape_.max_sampled_rows &&
            a.logits.row_size() <= scratch_shape_.vocab_size,
        "sample_rows of [{}, {}]: scratch for [{}, {}]", a.logits.dim(0), a.logits.row_size(),
        scratch_shape_.max_sampled_rows, scratch_shape_.vocab_size);
  run("sample_rows", s, nullptr, 0,
      [&](Stream stream) { cuda::sample_rows(a, scratch_.get() + regions_->sampling, stream); });
}

}  // namespace moectl::cuda
