#include "core/model/implied_tensors.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/model/tensor_names.h"

namespace moectl {
namespace {

// Storage forms as find_matrix() (quant_tensors.cpp) finds them.
class Implied {
  using Kind = ImpliedTensor::Kind;
  using Shape = std::vector<int64_t>;

 public:
  explicit Implied(const Config& config) : c_(config), q_(config.quant) {}

  std::vector<ImpliedTensor> get() {
    for_each_tensor(c_, [this](const TensorSpec& tensor) { add(tensor); });
    return std::move(out_);
  }

 private:
  void add(const TensorSpec& t) {
    if (!is_quantized(t)) {
      const bool norm = t.role == TensorRole::kNorm || t.name.ends_with("norm.weight");
      return put(norm ? Kind::kNorm : Kind::kPlain, t.name, c_.dtype, t.shape);
    }
    base_ = t.name.substr(0, t.name.size() - (t.name.ends_with(".weight") ? std::string_view(".weight").size() : 0));
    if (q_.form == QuantForm::kBlocks) return blocks(t);
    rows_ = t.shape[0];
    cols_ = t.shape[1];
    group_ = q_.block_k > 0 ? q_.block_k : cols_;
    if (q_.form == QuantForm::kScaled)
      scaled(t.name);
    else if (q_.form == QuantForm::kPacked)
      packed();
    else
      awq();
  }

  bool is_quantized(const TensorSpec& t) const {
    if (q_.form == QuantForm::kNone || !t.linear) return false;
    if (q_.form == QuantForm::kBlocks) return t.shape.size() == 3;
    const bool left_out =
        t.role == TensorRole::kGate || t.role == TensorRole::kOutputHead || t.role == TensorRole::kMtp;
    return t.shape.size() == 2 && t.shape[0] > 1 && !left_out;
  }

  void scaled(const std::string& name) {
    put(Kind::kQuantized, name, q_.dtype, {rows_, cols_});
    if (q_.block_k > 0)
      put(Kind::kScales, name + "_scale_inv", DType::kF32, {ceil_div(rows_, q_.block_n), ceil_div(cols_, q_.block_k)});
    else
      put(Kind::kScales, name + "_scale", DType::kF32, q_.block_n == 1 ? Shape{rows_, 1} : Shape{1});
  }

  void packed() {
    const int64_t down = ceil_div(rows_, q_.block_n > 0 ? q_.block_n : rows_), groups = ceil_div(cols_, group_);
    const std::string scale = base_ + ".weight_scale";
    if (q_.dtype == DType::kF4E2M1) {
      put(Kind::kQuantized, base_ + ".weight_packed", DType::kU8, {rows_, cols_ / 2});
      return put(Kind::kScales, scale, DType::kU8, {down, groups});
    }
    put(Kind::kQuantized, base_ + ".weight_packed", DType::kI32, {rows_, ceil_div(cols_ * dtype_bits(q_.dtype), 32)});
    put(Kind::kScales, scale, c_.dtype, {down, groups});
    if (q_.dtype == DType::kU4)
      put(Kind::kZeroPoints, base_ + ".weight_zero_point", DType::kI32, {ceil_div(down, 8), groups});
  }

  void awq() {
    const int64_t groups = ceil_div(cols_, group_);
    put(Kind::kQuantized, base_ + ".qweight", DType::kI32, {cols_, rows_ / 8});
    put(Kind::kScales, base_ + ".scales", DType::kF16, {groups, rows_});
    put(Kind::kZeroPoints, base_ + ".qzeros", DType::kI32, {groups, rows_ / 8});
  }

  void blocks(const TensorSpec& t) {
    const int64_t experts = t.shape[0], inputs = t.shape[1], outputs = t.shape[2];
    put(Kind::kQuantized, t.name + "_blocks", DType::kU8, {experts, outputs, ceil_div(inputs, 32), 16});
    put(Kind::kScales, t.name + "_scales", DType::kU8, {experts, outputs, ceil_div(inputs, 32)});
  }

  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  void put(Kind kind, std::string name, DType dtype, Shape shape) {
    TensorInfo t{.name = std::move(name), .dtype = dtype, .shape = std::move(shape)};
    t.num_bytes = dtype_bytes(dtype);
    for (const int64_t d : t.shape) t.num_bytes *= d;
    out_.push_back({std::move(t), kind});
  }

  const Config& c_;
  const QuantConfig& q_;
  std::vector<ImpliedTensor> out_;
  std::string base_;  // of the matrix at hand: the module's name
  int64_t rows_ = 0, cols_ = 0, group_ = 0;
};

// Addresses without memory behind them: headers are compared and offsets are computed, nothing is read.
std::shared_ptr<const void> address_space(int64_t num_bytes) {
  const size_t size = size_t(std::max<int64_t>(num_bytes, 1));
  void* p = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw Error(Code::kResourceExhausted,
                fmt::format("cannot reserve {} bytes of address space for the largest tensor of a config", size));
  return {p, [size](const void* q) { munmap(const_cast<void*>(q), size); }};
}

}  // namespace

std::vector<ImpliedTensor> implied_tensors(const Config& config) {
  return Implied(config).get();
}

Checkpoint implied_checkpoint(const Config& config, const std::string& name) {
  std::vector<TensorInfo> tensors;
  int64_t largest = 0;
  for (ImpliedTensor& t : implied_tensors(config)) {
    largest = std::max(largest, t.info.num_bytes);
    tensors.push_back(std::move(t.info));
  }
  const std::shared_ptr<const void> addresses = address_space(largest);
  for (TensorInfo& t : tensors) {
    t.data = static_cast<const std::byte*>(addresses.get());
    t.file = name;
  }
  return Checkpoint::in_memory(name, std::move(tensors), {addresses});
}

}  // namespace moectl
