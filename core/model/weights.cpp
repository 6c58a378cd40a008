#include "core/model/weights.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/model/quant_tensors.h"
#include "core/model/read_ahead.h"
#include "core/model/tensor_names.h"
#include "kernels/matrix_spec.h"

namespace moectl {
namespace {

constexpr int kReaders = 8;                            // of all loaders together
constexpr int64_t kReadAheadBytes = int64_t{2} << 30;  // likewise
constexpr int64_t kReleaseBytes = 512 << 20;

// What each of the Loader's visits reads of the checkpoint.
class Uses final : public TensorVisitor {
 public:
  Uses(const Config& config, const Checkpoint& checkpoint, const Shard& shard)
      : quant_(config.quant), checkpoint_(checkpoint) {
    ModelWeights none;
    visit_weights(config, shard, none, *this);
  }
  std::span<const std::vector<ReadAhead::Bytes>> ranges() const { return ranges_; }
  int64_t num_bytes(size_t use) const { return num_bytes_[use]; }
  int64_t total_bytes() const { return std::accumulate(num_bytes_.begin(), num_bytes_.end(), int64_t{0}); }

 private:
  void vector(View<const float>&, std::span<const TensorPart> parts) override {
    begin();
    for (const TensorPart& part : parts)
      if (const TensorInfo* t = checkpoint_.find(part.tensor.name)) {
        count(*t, part);
        add(t);
      }
    end();
  }
  void table(Weight& to, const TensorPart& part) override { matrices(to, {&part, 1}); }
  void matrices(Weight&, std::span<const TensorPart> batch) override {
    begin();
    for (const TensorPart& part : batch) {
      const StoredMatrix stored = find_matrix(quant_, checkpoint_, part.tensor, part.slice);
      if (!stored.missing.empty() || !stored.wrong.empty()) continue;  // the loader stops there
      for (const TensorInfo* t : stored.tensors) {
        count(*t, part);
        if (t != stored.tensors.front()) add(t);
      }
      if (!stored.tensors.empty()) add(stored.tensors.front(), rows_of(stored, part));
    }
    end();
  }

  void begin() {
    ranges_.emplace_back();
    num_bytes_.push_back(0);
    of_use_.clear();
  }
  void end() {
    for (const auto& [t, range] : of_use_) seen_.insert(t);
  }

  // The part's share of a tensor: numbers, or the scales beside them.
  void count(const TensorInfo& t, const TensorPart& part) {
    double size = 1;
    for (const int64_t d : part.tensor.shape) size *= double(d);
    num_bytes_.back() += int64_t(double(t.num_bytes) * (double(part.num_rows) * double(part.num_cols) / size));
  }

  // The rows that hold the part; whole tensors where rows do not lie together.
  static ReadAhead::Bytes rows_of(const StoredMatrix& stored, const TensorPart& part) {
    const MatrixSpec& m = stored.matrix;
    const TensorInfo& t = *stored.tensors.front();
    if (m.nibble_order == NibbleOrder::kAwq) return {t.data, size_t(t.num_bytes)};
    const int64_t first = stored.flipped ? part.col_begin : part.row_begin;
    const int64_t num = stored.flipped ? (part.num_cols - 1) * part.col_step + 1 : part.num_rows;
    return {m.data + first * spec::row_bytes(m), size_t(num * spec::row_bytes(m))};
  }

  void add(const TensorInfo* t) { add(t, {t->data, size_t(t->num_bytes)}); }
  // Each tensor is read ahead for its first use only; parts that nearly touch are one range.
  void add(const TensorInfo* t, ReadAhead::Bytes bytes) {
    constexpr ptrdiff_t kGap = 1 << 20;
    if (seen_.contains(t)) return;
    std::vector<ReadAhead::Bytes>& ranges = ranges_.back();
    if (const auto it = of_use_.find(t); it != of_use_.end()) {
      ReadAhead::Bytes& last = ranges[it->second];
      const std::byte* const last_end = last.data() + last.size();
      const std::byte* const bytes_end = bytes.data() + bytes.size();
      if (bytes.data() >= last.data() && bytes.data() - last_end <= kGap) {
        last = {last.data(), std::max(last_end, bytes_end)};
        return;
      }
    }
    of_use_[t] = ranges.size();
    ranges.push_back(bytes);
  }

  const QuantConfig& quant_;
  const Checkpoint& checkpoint_;
  std::vector<std::vector<ReadAhead::Bytes>> ranges_;
  std::vector<int64_t> num_bytes_;
  std::unordered_map<const TensorInfo*, size_t> of_use_;  // of the use at hand: last range of each tensor
  std::unordered_set<const TensorInfo*> seen_;            // in the uses before it
};

// What the loaders of one load_shards() share; any thread.
class Loading {
 public:
  Loading(int64_t total, const LoadProgress& progress) : total_(total), progress_(progress) {}

  void add(int64_t num_bytes) {
    std::lock_guard lock(mutex_);
    done_ += num_bytes;
    if (progress_) progress_(done_, total_);
  }
  void fail(std::exception_ptr failure) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = failure;
    failed_ = true;
  }
  bool failed() const { return failed_; }
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const int64_t total_;
  const LoadProgress& progress_;
  std::mutex mutex_;
  int64_t done_ = 0;
  std::exception_ptr failure_;
  std::atomic<bool> failed_ = false;
};

// Visits the tensors of a shard and packs each where it belongs.
class Loader final : public TensorVisitor {
 public:
  Loader(const Config& config, const Checkpoint& checkpoint, const ShardTarget& target, const Uses& uses,
         Loading& loading, int num_loaders)
      : config_(config),
        checkpoint_(checkpoint),
        ops_(target.ops),
        shard_(target.shard),
        uses_(uses),
        loading_(loading) {
    if (checkpoint_.is_mapped())
      ahead_.emplace(uses.ranges(), std::max(1, kReaders / num_loaders), kReadAheadBytes / num_loaders);
  }

  std::shared_ptr<const ModelWeights> load() {
    out_ = std::make_shared<ModelWeights>();
    out_->dims = shard_.dims;
    out_->experts = shard_.experts;
    visit_weights(config_, shard_, *out_, *this);
    release_used();
    return out_;
  }

 private:
  void begin_use() {
    if (loading_.failed()) throw Error(Code::kCancelled, "another shard failed to load");
    if (ahead_) ahead_->next();
  }
  void end_use() { loading_.add(uses_.num_bytes(use_++)); }

  void matrices(Weight& to, std::span<const TensorPart> batch) override {
    begin_use();
    if (!left_out(batch.front().tensor)) {
      std::vector<MatrixSpec> specs;
      for (const TensorPart& part : batch) specs.push_back(spec(part));
      for (const MatrixSpec& m : specs) require_alike(m, specs.front());
      to = ops_.pack(specs);
      account(to);
    }
    end_use();
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

  void table(Weight& to, const TensorPart& part) override {
    begin_use();
    if (!left_out(part.tensor)) {
      MatrixSpec m = spec(part);  // never quantized: whole rows lie together
      m.data += m.row_begin * m.cols * dtype_bytes(m.dtype);
      m.rows = m.num_rows;
      m.row_begin = 0;
      to = ops_.pack_rows(m);
      account(to);
    }
    end_use();
  }

  void vector(View<const float>& to, std::span<const TensorPart> parts) override {
    begin_use();
    const TensorSpec& tensor = parts.front().tensor;
    const TensorInfo& t = checkpoint_.get(tensor.name, tensor.shape);
    const int64_t cols = tensor.shape.back();
    std::vector<float> host;
    for (const TensorPart& part : parts)
      for (int64_t row = part.row_begin; row < part.row_begin + part.num_rows; ++row)
        for (int64_t i = 0; i < part.num_cols; ++i)
          host.push_back(value(t, row * cols + part.col_begin + i * part.col_step));
    const int64_t size = int64_t(host.size());
    Buffer buffer = ops_.device().alloc(size * 4);
    ops_.device().upload(buffer.get(), host.data(), size * 4);
    out_->vectors.push_back(buffer);
    out_->num_bytes += size * 4;
    to = View<const float>(reinterpret_cast<float*>(buffer.get()), {size});
    end_use();
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

  // The operand as it lies in the file, with its scales when it is quantized.
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
                  fmt::format("{}: tensor {} (quantization: {})", stored.tensors.front()->file, stored.wrong.front(),
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

  // Accounts for what was packed. A tensor's file pages are released when the next tensor comes (kv_b_proj is used
  // twice), so that a loaded server holds its weights once.
  void account(const Weight& w) {
    out_->num_bytes += w.num_bytes;
    if (!used_.empty() && used_.front() != using_.front()) release_used();
    used_ = std::exchange(using_, {});
  }
  void release_used() {
    for (const TensorInfo* t : std::set(used_.begin(), used_.end())) {
      spent_bytes_ += t->num_bytes;
      spent_.push_back(t);
    }
    if (spent_bytes_ < kReleaseBytes) return;
    checkpoint_.release(std::exchange(spent_, {}));
    spent_bytes_ = 0;
  }

  const Config& config_;
  const Checkpoint& checkpoint_;
  Ops& ops_;
  const Shard& shard_;
  const Uses& uses_;
  Loading& loading_;
  std::shared_ptr<ModelWeights> out_;
  std::vector<const TensorInfo*> using_, used_;  // by the matrices at hand; by the ones before them
  std::vector<const TensorInfo*> spent_;         // to be released
  int64_t spent_bytes_ = 0;
  size_t use_ = 0;
  std::optional<ReadAhead> ahead_;
};

// Before the first allocation: a checkpoint that cannot fit (or a sparse file that claims to be huge) is refused with
// its numbers.
void check_memory(const Checkpoint& checkpoint, int64_t needed) {
  const int64_t available = available_memory_bytes();
  if (needed > available)
    throw Error(
        Code::kResourceExhausted,
        fmt::format("{}: the weights need {:.1f} GB of memory and {:.1f} GB are available; use a machine with more "
                    "memory or a smaller checkpoint",
                    checkpoint.dir().string(), double(needed) / 1e9, double(available) / 1e9));
}

}  // namespace

std::vector<std::shared_ptr<const ModelWeights>> load_shards(const Config& config, const Checkpoint& checkpoint,
                                                             std::span<const ShardTarget> targets,
                                                             const LoadProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<Uses> uses;
  int64_t total = 0, in_host_memory = 0;
  for (const ShardTarget& target : targets) {
    const int64_t bytes = uses.emplace_back(config, checkpoint, target.shard).total_bytes();
    total += bytes;
    // Else the engine's memory plan has decided.
    if (!target.ops.capabilities().limited_memory) in_host_memory += bytes;
  }
  check_memory(checkpoint, in_host_memory);

  std::vector<std::shared_ptr<const ModelWeights>> weights(targets.size());
  Loading loading(total, progress);
  const auto load = [&](size_t i) {
    try {
      weights[i] = Loader(config, checkpoint, targets[i], uses[i], loading, int(targets.size())).load();
    } catch (...) {
      loading.fail(std::current_exception());
    }
  };
  {
    std::vector<std::jthread> threads;
    for (size_t i = 1; i < targets.size(); ++i) threads.emplace_back(load, i);
    if (!targets.empty()) load(0);
  }
  loading.rethrow();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  log::info("weights: {:.2f} GB loaded in {:.2f} s", double(total) / 1e9, seconds);
  return weights;
}

std::shared_ptr<const ModelWeights> load_weights(const Config& config, const Checkpoint& checkpoint, Ops& ops,
                                                 const LoadProgress& progress) {
  const ShardTarget whole = {ops, whole_model(config)};
  return load_shards(config, checkpoint, {&whole, 1}, progress).front();
}

int64_t shard_bytes(const Config& config, const Checkpoint& checkpoint, const Shard& shard) {
  return Uses(config, checkpoint, shard).total_bytes();
}

}  // namespace moectl
