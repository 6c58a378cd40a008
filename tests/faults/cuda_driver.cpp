// A libcuda.so.1 that breaks on demand, for tests/e2e/cuda_fault_test.py: put before NVIDIA's driver library in
// LD_LIBRARY_PATH, it hands every call on to the real one until a file appears; then the next launch goes wrong. Knows
// the driver's interface by its documented signatures alone, so that it compiles without CUDA's headers.
//
//   FAULT_DRIVER    path of the real driver library
//   FAULT_TRIGGER   path of the file, whose first word says what happens:
//     wild          a kernel that writes to an unmapped address goes into the stream before the launch
//     refuse        the launch returns CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES and starts nothing
//     spin          a kernel that never ends goes into the stream before the launch
//     swallow       this and all later launches of the thread, a rank's, succeed and start nothing
//     lost          this and all later launches and waits of the thread return CUDA_ERROR_LAUNCH_FAILED
//
// The runtime (cudart, linked statically) takes every function through cuGetProcAddress; the few that are watched are
// replaced there. Calls may come from any thread.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace {

using Result = int;    // CUresult
using Handle = void*;  // CUfunction, CUstream, CUgraphExec
constexpr Result kSuccess = 0, kNotFound = 500, kOutOfResources = 701, kLaunchFailed = 719;
constexpr uint64_t kPerThreadStreams = 2;  // of cuGetProcAddress' flags

[[noreturn]] void die(const char* what, const char* why) {
  std::fprintf(stderr, "fault driver: %s: %s\n", what, why);
  std::_Exit(99);
}

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

void* real_library() {
  static void* const library = [] {
    void* opened = dlopen(variable("FAULT_DRIVER"), RTLD_NOW | RTLD_LOCAL);
    if (!opened) die("FAULT_DRIVER", dlerror());
    return opened;
  }();
  return library;
}

template <class F>
F real_function(const char* name) {
  return reinterpret_cast<F>(dlsym(real_library(), name));
}

// What was replaced.
struct Real {
  Result (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**,
                   void**) = nullptr;
  Result (*launch_ex)(const void*, Handle, void**, void**) = nullptr;
  Result (*graph_launch)(Handle, Handle) = nullptr;
  Result (*stream_synchronize)(Handle) = nullptr;
  Result (*event_synchronize)(Handle) = nullptr;
} real;

std::mutex mutex;
std::string fault;              // that has happened
thread_local bool hit = false;  // it happened to this thread

constexpr const char* kKernels = R"(
.version 7.0
.target sm_80
.address_size 64
.visible .entry wild() {
  .reg .b64 %address;
  mov.u64 %address, 0x400000000000;
  st.global.u64 [%address], %address;
  ret;
}
.visible .entry spin() {
again:
  bra again;
}
)";

// The module of these kernels in each context, loaded with its first launch: a module that is loaded while a rank on
// the same GPU waits for its peers may wait for that rank. Called with `mutex`.
Handle kernels_of_context() {
  static std::map<Handle, Handle> modules;
  static const auto current = real_function<Result (*)(Handle*)>("cuCtxGetCurrent");
  static const auto load = real_function<Result (*)(Handle*, const void*)>("cuModuleLoadData");
  Handle context = nullptr;
  if (current(&context) != kSuccess || !context) return nullptr;
  const auto [place, is_new] = modules.try_emplace(context);
  if (is_new)
    if (const Result result = load(&place->second, kKernels); result != kSuccess)
      std::fprintf(stderr, "fault driver: cuModuleLoadData: status %d\n", result);
  return place->second;
}

void launch_kernel(const char* name, Handle stream) {
  static const auto get = real_function<Result (*)(Handle*, Handle, const char*)>("cuModuleGetFunction");
  Handle kernel = nullptr;
  Result result = get(&kernel, kernels_of_context(), name);
  if (result == kSuccess) result = real.launch(kernel, 1, 1, 1, 1, 1, 1, 0, stream, nullptr, nullptr);
  std::fprintf(stderr, "fault driver: launched the kernel %s, status %d\n", name, result);
}

// What later calls of the thread that was hit return; nullopt: they go on.
std::optional<Result> launch_after_fault() {
  if (hit && fault == "swallow") return kSuccess;
  if (hit && fault == "lost") return kLaunchFailed;
  return std::nullopt;
}

// What a launch returns in place of being made; nullopt: it goes on. Nothing is loaded and no fault begins amid the
// recording of a graph, which would end it.
std::optional<Result> instead_of_launch(Handle stream) {
  std::lock_guard lock(mutex);
  if (!fault.empty()) return launch_after_fault();
  static const auto is_capturing = real_function<Result (*)(Handle, int*)>("cuStreamIsCapturing");
  int capturing = 0;
  if (is_capturing(stream, &capturing) != kSuccess || capturing) return std::nullopt;
  kernels_of_context();
  std::FILE* file = std::fopen(variable("FAULT_TRIGGER"), "r");
  if (!file) return std::nullopt;
  char word[16] = "";
  const bool written = std::fscanf(file, "%15s", word) == 1;
  std::fclose(file);
  if (!written) return std::nullopt;
  fault = word;
  hit = true;
  if (fault == "wild" || fault == "spin") return launch_kernel(word, stream), std::nullopt;
  if (fault != "refuse" && fault != "swallow" && fault != "lost") die("FAULT_TRIGGER names no fault", word);
  std::fprintf(stderr, "fault driver: %s\n", word);
  return fault == "refuse" ? kOutOfResources : launch_after_fault();
}

Result launch(Handle f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
              Handle stream, void** params, void** extra) {
  if (const auto result = instead_of_launch(stream)) return *result;
  return real.launch(f, gx, gy, gz, bx, by, bz, shared, stream, params, extra);
}

// CUlaunchConfig: seven sizes of four bytes, a gap, then the stream.
Result launch_ex(const void* config, Handle f, void** params, void** extra) {
  Handle stream;
  std::memcpy(&stream, static_cast<const char*>(config) + 8 * sizeof(unsigned), sizeof stream);
  if (const auto result = instead_of_launch(stream)) return *result;
  return real.launch_ex(config, f, params, extra);
}

Result graph_launch(Handle graph, Handle stream) {
  if (const auto result = instead_of_launch(stream)) return *result;
  return real.graph_launch(graph, stream);
}

bool is_lost() {
  if (!hit) return false;
  std::lock_guard lock(mutex);
  return fault == "lost";
}

Result stream_synchronize(Handle stream) {
  return is_lost() ? kLaunchFailed : real.stream_synchronize(stream);
}

Result event_synchronize(Handle event) {
  return is_lost() ? kLaunchFailed : real.event_synchronize(event);
}

template <class F>
void replace(F& original, F ours, void** function) {
  original = reinterpret_cast<F>(*function);
  *function = reinterpret_cast<void*>(ours);
}

}  // namespace

// ------------------------------------------------------------------------------------------------ what cudart looks up

extern "C" {

Result cuGetProcAddress_v2(const char* symbol, void** function, int version, uint64_t flags, void* status);
Result cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags);

static void replace_watched(const char* symbol, void** function, int version, uint64_t flags) {
  if (!function || !*function || (flags & kPerThreadStreams)) return;
  const std::string_view name = symbol;
  std::lock_guard lock(mutex);
  if (name == "cuLaunchKernel")
    replace(real.launch, launch, function);
  else if (name == "cuLaunchKernelEx")
    replace(real.launch_ex, launch_ex, function);
  else if (name == "cuGraphLaunch")
    replace(real.graph_launch, graph_launch, function);
  else if (name == "cuStreamSynchronize")
    replace(real.stream_synchronize, stream_synchronize, function);
  else if (name == "cuEventSynchronize")
    replace(real.event_synchronize, event_synchronize, function);
  else if (name == "cuGetProcAddress")
    *function =
        version >= 12000 ? reinterpret_cast<void*>(cuGetProcAddress_v2) : reinterpret_cast<void*>(cuGetProcAddress);
}

Result cuGetProcAddress_v2(const char* symbol, void** function, int version, uint64_t flags, void* status) {
  static const auto original = real_function<decltype(&cuGetProcAddress_v2)>("cuGetProcAddress_v2");
  if (!original) return kNotFound;
  const Result result = original(symbol, function, version, flags, status);
  if (result == kSuccess) replace_watched(symbol, function, version, flags);
  return result;
}

Result cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags) {
  static const auto original = real_function<decltype(&cuGetProcAddress)>("cuGetProcAddress");
  if (!original) return kNotFound;
  const Result result = original(symbol, function, version, flags);
  if (result == kSuccess) replace_watched(symbol, function, version, flags);
  return result;
}

Result cuGetExportTable(const void** table, const void* id) {
  static const auto original = real_function<decltype(&cuGetExportTable)>("cuGetExportTable");
  return original(table, id);
}

}  // extern "C"
