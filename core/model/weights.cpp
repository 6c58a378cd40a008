#include "core/model/weights.h"

#include <array>
#include <cstring>

#include "core/base/check.h"
#include "core/base/memory.h"
#include "core/model/tensor_names.h"

namespace moectl {
namespace {

// Visits the tensors that the config implies and packs each where it belongs.
class Loader final : public TensorVisitor {
 public:
  Loader(const Config& config, const Checkpoint& checkpoint, Ops& ops,
         const std::function<void(int64_t, int64_t)>& progress)
      : config_(config), checkpoint_(checkpoint), ops_(ops), progress_(progress) {}

  std::shared_ptr<const ModelWeights> load() {
    check_memory();
    out_ = std::make_shared<ModelWeights>();
    visit_weights(config_, *out_, *this);
    finish();
    return out_;
  }

 private:
  // Before the first allocation: a checkpoint that cannot fit (or a sparse file that claims to be huge) is refused in
  // words.
  void check_memory() const {
    const int64_t needed = checkpoint_.total_bytes(), available = available_memory_bytes();
    if (needed > available)
      throw Error(
          Code::kResourceExhausted,
          fmt::format("{}: the weights need {:.1f} GB of memory and {:.1f} GB are available; use a machine with more "
                      "memory or a smaller checkpoint",
                      checkpoint_.dir().string(), double(needed) / 1e9, double(available) / 1e9));
  }

  void matrices(Weight& to, std::span<const TensorPart> batch) override {
    if (left_out(batch.front().tensor)) return;
    std::vector<MatrixSpec> specs;
    for (const TensorPart& part : batch) specs.push_back(spec(part));
    to = ops_.pack(specs);
    account(to, batch);
  }

  void table(Weight& to, const TensorSpec& tensor) override {
    if (left_out(tensor)) return;
    const TensorPart part = {.tensor = tensor, .num_rows = tensor.shape[0], .num_cols = tensor.shape[1]};
    const MatrixSpec m = spec(part);
    if (m.scales) throw Error(Code::kBadData, fmt::format("{}: embeddings in FP8 are not supported", m.name));
    to = ops_.pack_rows(m);
    account(to, {&part, 1});
  }

  void vector(View<const float>& to, const TensorPart& part) override {
    const TensorInfo& t = checkpoint_.get(part.tensor.name, part.tensor.shape);
    const int64_t cols = part.tensor.shape.back(), size = part.num_rows * part.num_cols;
    std::vector<float> host;
    host.reserve(size_t(size));
    for (int64_t row = 0; row < part.num_rows; ++row)
      for (int64_t i = 0; i < part.num_cols; ++i)
        host.push_back(value(t, row * cols + part.col_begin + i * part.col_step));
    Buffer buffer = ops_.alloc(size * 4);
    ops_.upload(buffer.get(), host.data(), size * 4);
    out_->vectors.push_back(buffer);
    out_->num_bytes += size * 4;
    to = View<const float>(reinterpret_cast<float*>(buffer.get()), {size});
  }

  static float value(const TensorInfo& t, int64_t i) {
    const std::byte* p = t.data + i * dtype_bytes(t.dtype);
    uint16_t half = 0;
    float single = 0.0f;
    switch (t.dtype) {
      case DType::kF32:
        std::memcpy(&single, p, 4);
        return single;
      case DType::kBF16:
        std::memcpy(&half, p, 2);
        return bf16_to_f32(half);
      case DType::kF16:
        std::memcpy(&half, p, 2);
        return f16_to_f32(half);
      default:
        throw Error(Code::kBadData,
                    fmt::format("{}: {} is {}; vectors are f32, bf16 or f16", t.file, t.name, dtype_name(t.dtype)));
    }
  }

  // Published checkpoints repeat the embedding and the head in their MTP modules; both may be left out.
  bool left_out(const TensorSpec& tensor) const { return tensor.shared_copy && !checkpoint_.find(tensor.name); }

  // The operand as it lies in the file, with its block scales when it is FP8.
  MatrixSpec spec(const TensorPart& part) {
    const TensorSpec& tensor = part.tensor;
    const TensorInfo& t = checkpoint_.get(tensor.name, tensor.shape);
    const int64_t rows = tensor.shape[tensor.shape.size() - 2], cols = tensor.shape.back();
    MatrixSpec m = {.name = fmt::format("{}: {}", t.file, tensor.name),
                    .data = t.data + part.slice * rows * cols * dtype_bytes(t.dtype),
                    .dtype = t.dtype,
                    .rows = rows,
                    .cols = cols,
                    .row_begin = part.row_begin,
                    .num_rows = part.num_rows,
                    .col_begin = part.col_begin,
                    .num_cols = part.num_cols,
                    .col_step = part.col_step,
                    .transpose = part.transpose};
    if (t.dtype == DType::kF8E4M3) {
      add_scales(tensor, t, m);
    } else if (t.dtype != DType::kF32 && t.dtype != DType::kBF16 && t.dtype != DType::kF16) {
      throw Error(Code::kBadData, fmt::format("{}: {} is {}; weights are f32, bf16, f16 or f8_e4m3", t.file,
                                              tensor.name, dtype_name(t.dtype)));
    }
    return m;
  }

  void add_scales(const TensorSpec& tensor, const TensorInfo& t, MatrixSpec& m) {
    const int bn = config_.quant.block_n, bk = config_.quant.block_k;
    if (bn <= 0 || bk <= 0 || tensor.shape.size() != 2)
      throw Error(Code::kBadData,
                  fmt::format("{}: {} is FP8, but config.json has no quantization_config.weight_block_size; "
                              "expected [128, 128]",
                              t.file, tensor.name));
    const TensorInfo& s = checkpoint_.get(scale_name(tensor.name), scale_shape(config_.quant, tensor.shape));
    if (s.dtype != DType::kF32)
      throw Error(Code::kBadData, fmt::format("{}: {} is {}, expected f32", s.file, s.name, dtype_name(s.dtype)));
    m.scales = s.data;
    m.block_n = bn;
    m.block_k = bk;
  }

  // Accounts for what was packed. A tensor's file pages are let go when the next tensor comes (kv_b_proj is used
  // twice), so that a loaded server holds its weights once.
  void account(const Weight& w, std::span<const TensorPart> batch) {
    out_->num_bytes += w.num_bytes;
    if (!used_.empty() && used_.front() != checkpoint_.find(batch.front().tensor.name)) finish();
    used_.clear();
    for (const TensorPart& part : batch) used_.push_back(checkpoint_.find(part.tensor.name));
  }
  void finish() {
    for (size_t i = 0; i < used_.size(); ++i) {
      if (i > 0 && used_[i] == used_[i - 1]) continue;
      done_ += used_[i]->num_bytes;
      checkpoint_.release(*used_[i]);
    }
    if (progress_) progress_(std::min(done_, checkpoint_.total_bytes()), checkpoint_.total_bytes());
  }

  const Config& config_;
  const Checkpoint& checkpoint_;
  Ops& ops_;
  const std::function<void(int64_t, int64_t)>& progress_;
  std::shared_ptr<ModelWeights> out_;
  std::vector<const TensorInfo*> used_;
  int64_t done_ = 0;
};

}  // namespace

std::shared_ptr<const ModelWeights> load_weights(const Config& config, const Checkpoint& checkpoint, Ops& ops,
                                                 const std::function<void(int64_t, int64_t)>& progress) {
  return Loader(config, checkpoint, ops, progress).load();
}

int64_t weight_bytes(const ModelWeights& weights) {
  return weights.num_bytes;
}

}  // namespace moectl
