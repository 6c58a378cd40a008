#include "core/model/quant_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <utility>

namespace moectl {

namespace {

using Shape = std::vector<int64_t>;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

std::string shape_text(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string dtype_names(std::span<const DType> dtypes) {
  std::string s;
  for (size_t i = 0; i < dtypes.size(); ++i)
    s += fmt::format("{}{}", i == 0 ? "" : i + 1 == dtypes.size() ? " or " : ", ", dtype_name(dtypes[i]));
  return s;
}

class Finder {
 public:
  Finder(const QuantConfig& quant, const Checkpoint& checkpoint, const TensorSpec& tensor, int64_t slice)
      : q_(quant), checkpoint_(checkpoint), t_(tensor), slice_(slice), base_(tensor.name) {
    if (base_.ends_with(".weight")) base_.resize(base_.size() - std::string_view(".weight").size());
    const size_t rank = t_.shape.size();
    rows_ = rank >= 2 ? t_.shape[rank - 2] : 1;
    cols_ = t_.shape.back();
  }

  StoredMatrix find() {
    if (checkpoint_.find(t_.name))
      as_itself();
    else if (is_form(QuantForm::kPacked, base_ + ".weight_packed", 2))
      packed();
    else if (is_form(QuantForm::kAwq, base_ + ".qweight", 2))
      awq();
    else if (is_form(QuantForm::kBlocks, t_.name + "_blocks", 3))
      blocks();
    else
      out_.missing.push_back(fmt::format("{} {}", t_.name, shape_text(t_.shape)));
    out_.matrix.num_rows = out_.matrix.rows;
    out_.matrix.num_cols = out_.matrix.cols;
    return std::move(out_);
  }

 private:
  static constexpr std::array kPlain = {DType::kF32, DType::kBF16, DType::kF16};

  // Whether the matrix, one of `rank` dimensions, is stored in this form.
  bool is_form(QuantForm form, const std::string& numbers, size_t rank) const {
    return t_.linear && q_.form == form && t_.shape.size() == rank && checkpoint_.find(numbers);
  }
  // A tensor that must be there with one of these shapes and dtypes; null when it is not.
  const TensorInfo* want(const std::string& name, std::initializer_list<Shape> shapes, std::span<const DType> dtypes) {
    const TensorInfo* t = checkpoint_.find(name);
    if (!t) {
      out_.missing.push_back(fmt::format("{} {}", name, shape_text(*shapes.begin())));
      return nullptr;
    }
    out_.tensors.push_back(t);
    if (std::find(shapes.begin(), shapes.end(), t->shape) == shapes.end())
      wrong(fmt::format("{} has shape {}; expected {}", name, shape_text(t->shape), shape_text(*shapes.begin())));
    if (std::find(dtypes.begin(), dtypes.end(), t->dtype) == dtypes.end())
      wrong(fmt::format("{} has dtype {}; expected {}", name, dtype_name(t->dtype), dtype_names(dtypes)));
    return t;
  }
  void wrong(std::string what) { out_.wrong.push_back(std::move(what)); }

  // The numbers, for slices of `slice_bytes`.
  void numbers(const TensorInfo* t, DType dtype, int64_t slice_bytes) {
    if (!t) return;
    out_.matrix.name = fmt::format("{}: {}", t->file, t->name);
    if (std::find(kPlain.begin(), kPlain.end(), dtype) == kPlain.end())
      out_.matrix.name += fmt::format(" ({})", q_.scheme);
    out_.matrix.data = t->data + slice_ * slice_bytes;
    out_.matrix.dtype = dtype;
    out_.matrix.rows = rows_;
    out_.matrix.cols = cols_;
  }
  void scales(const TensorInfo* t, int64_t block_n, int64_t block_k, int64_t slice_bytes = 0) {
    if (!t) return;
    out_.matrix.scales = t->data + slice_ * slice_bytes;
    out_.matrix.scale_dtype = t->dtype == DType::kU8 ? DType::kF8E8M0 : t->dtype;
    out_.matrix.block_n = int(block_n);
    out_.matrix.block_k = int(block_k);
  }
  // A scale for each group of k's; a group that does not divide k would be read differently by different programs.
  int64_t group(int64_t k) {
    const int64_t size = q_.block_k > 0 ? q_.block_k : k;
    if (k % size != 0)
      wrong(fmt::format("{} has {} inputs; expected a multiple of {} group_size, {}", base_, k, q_.scheme, size));
    return size;
  }

  // NAME itself: plain numbers, or FP8 or INT8 ones with scales beside them.
  void as_itself() {
    const TensorInfo& t = *checkpoint_.find(t_.name);
    const bool scaled = t_.linear && q_.form == QuantForm::kScaled && t.dtype == q_.dtype;
    std::vector<DType> dtypes(kPlain.begin(), kPlain.end());
    if (t_.linear && q_.form == QuantForm::kScaled) dtypes.push_back(q_.dtype);
    want(t_.name, {t_.shape}, dtypes);
    if (const TensorInfo* input = checkpoint_.find(base_ + ".input_scale"); input && scaled)
      out_.tensors.push_back(input);  // of activations that other programs quantize
    if (!out_.wrong.empty() && q_.form == QuantForm::kNone && t.dtype == DType::kF8E4M3)
      out_.wrong.back() += " (config.json has no quantization_config)";
    numbers(&t, t.dtype, rows_ * cols_ * dtype_bytes(t.dtype));
    const std::string inverse = t_.name + "_scale_inv", plain = t_.name + "_scale";
    if (!scaled) {
      if (t_.linear && out_.wrong.empty() && (checkpoint_.find(inverse) || checkpoint_.find(plain)))
        wrong(
            fmt::format("{} has dtype {} and a scale; expected {}: weights that are still to be quantized are not "
                        "supported",
                        t_.name, dtype_name(t.dtype), q_.form == QuantForm::kNone ? "none" : dtype_name(q_.dtype)));
      return;
    }
    if (t_.shape.size() != 2)
      return wrong(fmt::format("{} has dtype {}; expected f32, bf16 or f16: fused experts in {} are not supported",
                               t_.name, dtype_name(t.dtype), q_.scheme));
    static constexpr std::array kScales = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E8M0};
    const std::string& name = checkpoint_.find(inverse) || !checkpoint_.find(plain) ? inverse : plain;
    if (q_.block_k > 0) {
      const int64_t down = ceil_div(rows_, q_.block_n), across = ceil_div(cols_, q_.block_k);
      return scales(want(name, {{down, across}}, kScales), q_.block_n, q_.block_k);
    }
    const TensorInfo* s = want(name, {{1}, {}, {1, 1}, {rows_}, {rows_, 1}}, kScales);
    const bool each_row = s && s->num_bytes > dtype_bytes(s->dtype);
    scales(s, each_row ? 1 : rows_, cols_);
  }

  // compressed-tensors, compressors/pack_quantized and compressors/mxfp4: the first number of a word lowest, rows of
  // whole words; zero points packed down the rows.
  void packed() {
    static constexpr std::array kScales = {DType::kBF16, DType::kF16, DType::kF32};
    static constexpr std::array kWords = {DType::kI32}, kBytes = {DType::kU8};
    static constexpr std::array kPowers = {DType::kU8, DType::kF8E8M0};
    const int64_t size = group(cols_), groups = ceil_div(cols_, size);
    const int64_t block_n = q_.block_n > 0 ? q_.block_n : rows_, down = ceil_div(rows_, block_n);
    if (q_.dtype == DType::kF4E2M1) {
      if (cols_ % 8 != 0) wrong(fmt::format("{} has {} inputs; expected a multiple of 8", base_, cols_));
      numbers(want(base_ + ".weight_packed", {{rows_, cols_ / 2}}, kBytes), q_.dtype, 0);
      scales(want(base_ + ".weight_scale", {{down, groups}}, kPowers), block_n, size);
      return;
    }
    const int64_t words = ceil_div(cols_ * dtype_bits(q_.dtype), 32);
    numbers(want(base_ + ".weight_packed", {{rows_, words}}, kWords), q_.dtype, 0);
    if (down * groups == 1)
      scales(want(base_ + ".weight_scale", {{1}, {}, {1, 1}}, kScales), block_n, size);
    else
      scales(want(base_ + ".weight_scale", {{down, groups}}, kScales), block_n, size);
    if (q_.dtype == DType::kU4)
      if (const TensorInfo* z = want(base_ + ".weight_zero_point", {{ceil_div(down, 8), groups}}, kWords))
        out_.matrix.zeros = z->data;
    static constexpr std::array kInteger = {DType::kI64, DType::kI32};
    if (checkpoint_.find(base_ + ".weight_shape")) out_.shape = want(base_ + ".weight_shape", {{2}}, kInteger);
    if (const TensorInfo* g = checkpoint_.find(base_ + ".weight_g_idx")) {
      out_.tensors.push_back(g);
      wrong(fmt::format("{}.weight_g_idx has an order of columns; expected none: actorder \"group\" is not supported",
                        base_));
    }
  }

  // AutoAWQ, awq/modules/linear/gemm.py: W transposed, eight outputs a word in the order 0 2 4 6 1 3 5 7.
  void awq() {
    static constexpr std::array kScales = {DType::kF16, DType::kBF16, DType::kF32};
    static constexpr std::array kWords = {DType::kI32};
    if (rows_ % 8 != 0) wrong(fmt::format("{} has {} outputs; expected a multiple of 8 for awq", base_, rows_));
    const int64_t size = group(cols_), groups = ceil_div(cols_, size);
    numbers(want(base_ + ".qweight", {{cols_, rows_ / 8}}, kWords), q_.dtype, 0);
    scales(want(base_ + ".scales", {{groups, rows_}}, kScales), 1, size);
    if (const TensorInfo* z = want(base_ + ".qzeros", {{groups, rows_ / 8}}, kWords)) out_.matrix.zeros = z->data;
    out_.matrix.nibble_order = NibbleOrder::kAwq;
  }

  // gpt-oss (transformers integrations/mxfp4.py, convert_moe_packed_tensors): fused experts [experts, outputs,
  // inputs / 32, 16 bytes], the first number of a byte in its low half; the model's tensor is [experts, inputs,
  // outputs].
  void blocks() {
    static constexpr std::array kBytes = {DType::kU8};
    static constexpr std::array kPowers = {DType::kU8, DType::kF8E8M0};
    const int64_t experts = t_.shape[0], n = cols_, k = rows_, groups = ceil_div(k, 32);
    if (k % 32 != 0) wrong(fmt::format("{} has {} inputs; expected a multiple of 32 for mxfp4", t_.name, k));
    std::swap(rows_, cols_);
    out_.flipped = true;
    numbers(want(t_.name + "_blocks", {{experts, n, groups, 16}}, kBytes), q_.dtype, n * groups * 16);
    scales(want(t_.name + "_scales", {{experts, n, groups}}, kPowers), 1, 32, n * groups);
  }

  const QuantConfig& q_;
  const Checkpoint& checkpoint_;
  const TensorSpec& t_;
  const int64_t slice_;
  std::string base_;  // the module's name
  int64_t rows_ = 0, cols_ = 0;
  StoredMatrix out_;
};

}  // namespace

StoredMatrix find_matrix(const QuantConfig& quant, const Checkpoint& checkpoint, const TensorSpec& tensor,
                         int64_t slice) {
  return Finder(quant, checkpoint, tensor, slice).find();
}

ScaleBlock scale_block(const StoredMatrix& stored) {
  const MatrixSpec& m = stored.matrix;
  ScaleBlock block;
  if (m.scales && m.block_n < m.rows) block.rows = m.block_n;
  if (m.scales && m.block_k < m.cols) block.cols = m.block_k;
  if (m.nibble_order == NibbleOrder::kAwq) block.rows = 8;
  if (dtype_bits(m.dtype) == 4 && block.cols == 1) block.cols = 8;
  if (stored.flipped) std::swap(block.rows, block.cols);
  return block;
}

bool is_scale_name(std::string_view name) {
  constexpr std::array<std::string_view, 11> kEndings = {
      "_scale_inv",   "_scale", ".scales", "_scales",      ".qzeros",      "weight_zero_point",
      "weight_shape", "_g_idx", ".g_idx",  ".input_scale", "_global_scale"};
  return std::any_of(kEndings.begin(), kEndings.end(), [&](std::string_view e) { return name.ends_with(e); });
}

}  // namespace moectl
