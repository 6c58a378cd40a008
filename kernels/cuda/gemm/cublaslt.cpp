// Types and constants come from the toolkit's headers; every function through dlopen. The library computes column-major
// D = A^T B: with A = w and B = x as they are in memory, D is the row-major `out`.
#include "kernels/cuda/gemm/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "core/base/check.h"
#include "core/base/cuda_libraries.h"
#include "kernels/cuda/runtime/device.h"

namespace moectl::cuda {
namespace {

// Values that headers before 12.9 do not name; a library without them refuses them.
constexpr auto kScaleModeOfA = cublasLtMatmulDescAttributes_t(31), kScaleModeOfB = cublasLtMatmulDescAttributes_t(32);
constexpr int32_t kScaleVec128 = 4, kScaleBlock128x128 = 5;

struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetVersion) get_version;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
};

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

bool find_all(void* library, Functions& f) {
  return find(library, "cublasLtCreate", f.create) && find(library, "cublasLtGetVersion", f.get_version) &&
         find(library, "cublasLtMatmulDescCreate", f.desc_create) &&
         find(library, "cublasLtMatmulDescSetAttribute", f.desc_set) &&
         find(library, "cublasLtMatrixLayoutCreate", f.layout_create) &&
         find(library, "cublasLtMatmulPreferenceCreate", f.preference_create) &&
         find(library, "cublasLtMatmulPreferenceDestroy", f.preference_destroy) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", f.preference_set) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", f.heuristic) && find(library, "cublasLtMatmul", f.matmul);
}

// What the algorithm may depend on: the device, the shape, the dtypes.
using Key = std::tuple<int, int64_t, int64_t, int64_t, DType, DType, LtScales, bool>;

struct MatmulPlan {
  std::string unsupported;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algo = {};
};

cudaDataType_t data_type(DType t) {
  return t == DType::kBF16 ? CUDA_R_16BF : t == DType::kF32 ? CUDA_R_32F : CUDA_R_8F_E4M3;
}

bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace

struct CublasLt::State {
  std::mutex mutex;
  void* library = nullptr;
  std::string why_absent;
  Functions f = {};
  std::map<int, cublasLtHandle_t> handles;  // per device
  std::map<Key, MatmulPlan> plans;

  void load() {
    std::string tried;
    for (const std::string& path :
         cuda_library_candidates({"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})) {
      library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library && find_all(library, f)) return;
      tried += fmt::format("{}{}", tried.empty() ? "" : "; ", library ? path + " lacks functions" : dlerror());
      if (library) dlclose(library);
      library = nullptr;
    }
    why_absent = fmt::format(
        "cuBLASLt was not found ({}). Install CUDA's libcublas, or put the folder of libcublasLt.so into "
        "LD_LIBRARY_PATH",
        tried);
  }

  cublasLtHandle_t handle(int device) {
    cublasLtHandle_t& h = handles[device];
    if (!h) check(f.create(&h), "cublasLtCreate");
    return h;
  }

  static void check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS)
      throw Error(Code::kUnavailable, fmt::format("{} failed with status {}", what, int(status)));
  }

  void set(const MatmulPlan& plan, cublasLtMatmulDescAttributes_t name, const void* value, size_t size) {
    check(f.desc_set(plan.desc, name, value, size), "cublasLtMatmulDescSetAttribute");
  }

  void set_scales(const MatmulPlan& plan, const LtMatmulArgs& args) {
    if (args.scales == LtScales::kNone) return;
    set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &args.w_scales, sizeof args.w_scales);
    set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &args.x_scales, sizeof args.x_scales);
  }

  void build(MatmulPlan& plan, const LtMatmulArgs& args, int device) {
    check(f.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    set(plan, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (args.scales == LtScales::kBlock) {
      set(plan, kScaleModeOfA, &kScaleBlock128x128, sizeof kScaleBlock128x128);
      set(plan, kScaleModeOfB, &kScaleVec128, sizeof kScaleVec128);
    }
    const int8_t fast = args.fast_accumulation;
    if (args.scales == LtScales::kTensor) set(plan, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast);
    set_scales(plan, args);
    const cudaDataType_t in = data_type(args.dtype), out = data_type(args.out_dtype);
    check(f.layout_create(&plan.a, in, uint64_t(args.k), uint64_t(args.n), args.k), "cublasLtMatrixLayoutCreate");
    check(f.layout_create(&plan.b, in, uint64_t(args.k), uint64_t(args.m), args.k), "cublasLtMatrixLayoutCreate");
    check(f.layout_create(&plan.d, out, uint64_t(args.n), uint64_t(args.m), args.n), "cublasLtMatrixLayoutCreate");
    cublasLtMatmulPreference_t preference = nullptr;
    check(f.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
    const uint64_t workspace_bytes = kLtWorkspaceBytes;
    check(f.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                           sizeof workspace_bytes),
          "cublasLtMatmulPreferenceSetAttribute");
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    const cublasStatus_t status =
        f.heuristic(handle(device), plan.desc, plan.a, plan.b, plan.d, plan.d, preference, 1, &result, &found);
    f.preference_destroy(preference);
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    if (found == 0) throw Error(Code::kUnavailable, "it has no algorithm for this");
    plan.algo = result.algo;
  }

  const MatmulPlan& plan(const LtMatmulArgs& args) {
    const int device = current_device();
    const Key key{device, args.m, args.n, args.k, args.dtype, args.out_dtype, args.scales, args.fast_accumulation};
    auto [it, is_new] = plans.try_emplace(key);
    if (is_new) try {
        build(it->second, args, device);
      } catch (const Error& e) {
        it->second.unsupported = fmt::format("cuBLASLt {} cannot compute {} x {} x {}, {} with {} scales, into {}: {}",
                                             f.get_version(), args.m, args.n, args.k, dtype_info(args.dtype).name,
                                             args.scales == LtScales::kBlock    ? "block"
                                             : args.scales == LtScales::kTensor ? "tensor"
                                                                                : "no",
                                             dtype_info(args.out_dtype).name, e.what());
      }
    return it->second;
  }
};

CublasLt::CublasLt() : state_(std::make_unique<State>()) {
  state_->load();
}

// Handles and the library stay: at exit the CUDA runtime may be gone already.
CublasLt::~CublasLt() = default;

CublasLt& CublasLt::get() {
  static CublasLt instance;
  return instance;
}

bool CublasLt::is_present() const {
  return state_->library != nullptr;
}

const std::string& CublasLt::why_absent() const {
  return state_->why_absent;
}

std::string CublasLt::version() const {
  if (!is_present()) return {};
  const size_t v = state_->f.get_version();
  return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100);
}

std::string CublasLt::why_unsupported(const LtMatmulArgs& args) {
  if (!is_present()) return why_absent();
  if (!aligned(args.x) || !aligned(args.w) || !aligned(args.out)) return "operands are not aligned to 16 bytes";
  std::lock_guard lock(state_->mutex);
  return state_->plan(args).unsupported;
}

void CublasLt::matmul(const LtMatmulArgs& args, Stream stream) {
  CHECK((args.dtype == DType::kF8E4M3) == (args.scales != LtScales::kNone), "FP8 and scales go together");
  if (std::string reason = why_unsupported(args); !reason.empty()) throw Error(Code::kUnavailable, reason);
  const float one = 1.0f, zero = 0.0f;
  std::lock_guard lock(state_->mutex);  // scale pointers are part of a plan
  const MatmulPlan& plan = state_->plan(args);
  state_->set_scales(plan, args);
  State::check(
      state_->f.matmul(state_->handle(current_device()), plan.desc, &one, args.w, plan.a, args.x, plan.b, &zero,
                       args.out, plan.d, args.out, plan.d, &plan.algo, args.workspace,
                       args.workspace ? size_t(kLtWorkspaceBytes) : 0, static_cast<cudaStream_t>(stream.handle)),
      "cublasLtMatmul");
}

}  // namespace moectl::cuda
