#include "core/model/weights.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <optional>
#include <set>
#include <unordered_set>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/model/quant_tensors.h"
#include "core/model/read_ahead.h"
#include "core/model/tensor_names.h"

namespace moectl {
namespace {

constexpr int kReaders = 8;
constexpr int64_t kReleaseBytes = 512 << 20;

// What each of the Loader's visits will read of the files.
class Uses final : public TensorVisitor {
 public:
  Uses(const Config& config, const Checkpoint& checkpoint) : quant_(config.quant), checkpoint_(checkpoint) {
    ModelWeights none;
    visit_weights(config, none, *this);
  }
  std::span<const std::vector<ReadAhead::Bytes>> get() const { return uses_; }

 private:
  void vector(View<const float>&, const TensorPart& part) override {
    uses_.emplace_back();
    add(checkpoint_.find(part.tensor.name));
  }
  void table(Weight&, const TensorSpec& tensor) override {
    uses_.emplace_back();
    add(checkpoint_.find(tensor.name));
  }
  void matrices(Weight&, std::span<const TensorPart> batch) override {
    uses_.emplace_back();
    for (const TensorPart& part : batch)
      for (const TensorInfo* t : find_matrix(quant_, checkpoint_, part.tensor, part.slice).tensors) add(t);
  }
  void add(const TensorInfo* t) {
    if (t && seen_.insert(t).second) uses_.back().push_back({t->data, size_t(t->num_bytes)});
  }

  const QuantConfig& quant_;
  const Checkpoint& checkpoint_;
  std::vector<std::vector<ReadAhead::Bytes>> uses_;
  std::unordered_set<const TensorInfo*> seen_;
};

// Visits the tensors that the config implies and packs each where it belongs.
class Loader final : public TensorVisitor {
 public:
  Loader(const Config& config, const Checkpoint& checkpoint, Ops& ops,
         const std::function<void(int64_t, int64_t)>& progress)
      : config_(config), checkpoint_(checkpoint), ops_(ops), progress_(progress) {}

  std::shared_ptr<const ModelWeights> load() {
    check_memory();
    const auto start = std::chrono::steady_clock::now();
    out_ = std::make_shared<ModelWeights>();
    if (checkpoint_.is_mapped()) ahead_.emplace(Uses(config_, checkpoint_).get(), kReaders);
    visit_weights(config_, *out_, *this);
    finish();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    log::info("weights: {:.2f} GB loaded in {:.2f} s", double(done_) / 1e9, seconds);
    return out_;
  }

 private:
  // Before the first allocation: a checkpoint that cannot fit (or a sparse file that claims to be huge) is refused in
  // words.
  void check_memory() const {
    if (!ops_.host_memory()) return;  // the engine's memory plan has looked
    const int64_t needed = checkpoint_.total_bytes(), available = available_memory_bytes();
    if (needed > available)
      throw Error(
          Code::kResourceExhausted,
          fmt::format("{}: the weights need {:.1f} GB of memory and {:.1f} GB are available; use a machine with more "
                      "memory or a smaller checkpoint",
                      checkpoint_.dir().string(), double(needed) / 1e9, double(available) / 1e9));
  }

  void matrices(Weight& to, std::span<const TensorPart> batch) override {
    if (ahead_) ahead_->next();
    if (left_out(batch.front().tensor)) return;
    std::vector<MatrixSpec> specs;
    for (const TensorPart& part : batch) specs.push_back(spec(part));
    for (const MatrixSpec& m : specs) require_alike(m, specs.front());
    to = ops_.pack(specs);
    account(to);
  }

  static void require_alike(const MatrixSpec& m, const MatrixSpec& first) {
    auto kind = [](const MatrixSpec& x) {
      return x.scales ? fmt::format("{} with {} scales of {} x {}", dtype_name(x.dtype), dtype_name(x.scale_dtype),
                                    x.block_n, x.block_k)
                      : std::string(dtype_name(x.dtype));
    };
    if (kind(m) != kind(first))
      throw Error(Code::kBadData, fmt::format("{} is {}, and {} is {}; the experts of a layer must be stored alike",
                                              m.name, kind(m), first.name, kind(first)));
  }

  void table(Weight& to, const TensorSpec& tensor) override {
    if (ahead_) ahead_->next();
    if (left_out(tensor)) return;
    const TensorPart part = {.tensor = tensor, .num_rows = tensor.shape[0], .num_cols = tensor.shape[1]};
    const MatrixSpec m = spec(part);
    to = ops_.pack_rows(m);
    account(to);
  }

  void vector(View<const float>& to, const TensorPart& part) override {
    if (ahead_) ahead_->next();
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
  bool left_out(const TensorSpec& tensor) const {
    return tensor.shared_copy && find_matrix(config_.quant, checkpoint_, tensor).tensors.empty();
  }

  // The operand as it lies in the file, with its scales when it is quantised.
  MatrixSpec spec(const TensorPart& part) {
    StoredMatrix stored = find_matrix(config_.quant, checkpoint_, part.tensor, part.slice);
    refuse(stored, part.tensor);
    using_.insert(using_.end(), stored.tensors.begin(), stored.tensors.end());
    MatrixSpec m = std::move(stored.matrix);
    m.row_begin = part.row_begin;
    m.num_rows = part.num_rows;
    m.col_begin = part.col_begin;
    m.num_cols = part.num_cols;
    m.col_step = part.col_step;
    m.transpose = part.transpose;
    if (stored.flipped) {
      std::swap(m.row_begin, m.col_begin);
      std::swap(m.num_rows, m.num_cols);
      std::swap(m.row_step, m.col_step);
      m.transpose = !m.transpose;
    }
    return m;
  }

  void refuse(const StoredMatrix& stored, const TensorSpec& tensor) const {
    const std::string in =
        config_.quant.scheme.empty() ? "" : fmt::format(" (or its form in {})", config_.quant.scheme);
    if (!stored.missing.empty())
      throw Error(Code::kBadData,
                  fmt::format("{}: tensor {} is missing; config.json implies it{}: is the checkpoint complete?",
                              checkpoint_.dir().string(), stored.missing.front(), in));
    if (!stored.wrong.empty())
      throw Error(Code::kBadData,
                  fmt::format("{}: tensor {} (quantisation: {})", stored.tensors.front()->file, stored.wrong.front(),
                              config_.quant.scheme.empty() ? "none" : config_.quant.scheme));
    if (!stored.shape) return;
    std::array<int64_t, 2> shape{};  // little-endian
    const int size = dtype_bytes(stored.shape->dtype);
    for (int i = 0; i < 2; ++i) std::memcpy(&shape[size_t(i)], stored.shape->data + i * size, size_t(size));
    if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end()))
      throw Error(Code::kBadData,
                  fmt::format("{}: tensor {} says [{}, {}]; config.json implies [{}]", stored.shape->file,
                              stored.shape->name, shape[0], shape[1], fmt::join(tensor.shape, ", ")));
  }

  // Accounts for what was packed. A tensor's file pages are let go when the next tensor comes (kv_b_proj is used
  // twice), so that a loaded server holds its weights once.
  void account(const Weight& w) {
    out_->num_bytes += w.num_bytes;
    if (!used_.empty() && used_.front() != using_.front()) finish();
    used_ = std::exchange(using_, {});
  }
  void finish() {
    for (const TensorInfo* t : std::set(used_.begin(), used_.end())) {
      done_ += t->num_bytes;
      spent_.push_back(t);
    }
    if (done_ - released_ >= kReleaseBytes) {
      checkpoint_.release(std::exchange(spent_, {}));
      released_ = done_;
    }
    if (progress_) progress_(std::min(done_, checkpoint_.total_bytes()), checkpoint_.total_bytes());
  }

  const Config& config_;
  const Checkpoint& checkpoint_;
  Ops& ops_;
  const std::function<void(int64_t, int64_t)>& progress_;
  std::shared_ptr<ModelWeights> out_;
  std::vector<const TensorInfo*> using_, used_;  // by the matrices at hand; by the ones before them
  std::vector<const TensorInfo*> spent_;         // to be released
  int64_t done_ = 0, released_ = 0;
  std::optional<ReadAhead> ahead_;
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
