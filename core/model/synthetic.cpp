// Linear weights: standard deviation 0.02, as models are initialized (FP8: numbers of about 80 with scales of 0.00025);
// norms: 1; everything else, biases and corrections, 0.02 too. Random routers spread tokens over all experts.
#include "core/model/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <iterator>

#include "core/base/error.h"
#include "core/model/implied_tensors.h"

namespace moectl {
namespace {

constexpr int64_t kPatternBytes = 32 << 20;  // after so many, random numbers repeat
constexpr int64_t kOffsets = 1 << 20;        // tensors begin at a multiple of kAlignment below this
constexpr int64_t kAlignment = 256;
constexpr float kDeviation = 0.02f, kF8Scale = 0.00025f;

// The nearest e4m3 number; |v| <= 448.
uint8_t to_f8(float v) {
  static const std::vector<float> positive = [] {
    std::vector<float> all;
    for (int b = 0; b < 0x7f; ++b) all.push_back(f8_e4m3_to_f32(uint8_t(b)));
    return all;
  }();
  const float magnitude = std::abs(v);
  auto it = std::lower_bound(positive.begin(), positive.end(), magnitude);
  if (it == positive.end()) --it;
  if (it != positive.begin() && magnitude - it[-1] < *it - magnitude) --it;
  return uint8_t((v < 0 ? 0x80 : 0) | int(it - positive.begin()));
}

float near_normal(uint64_t bits) {  // four uniform numbers: mean 0, standard deviation 1
  int sum = 0;
  for (int part = 0; part < 4; ++part) sum += int((bits >> (16 * part)) & 0xffff);
  return (float(sum) - 131070.0f) * (1.7320508f / 65535.0f);
}

// num_bytes of numbers of a dtype, the first kPatternBytes of them again and again.
std::shared_ptr<std::byte[]> pattern(DType dtype, float deviation, float mean, int64_t num_bytes) {
  std::shared_ptr<std::byte[]> memory(new std::byte[size_t(num_bytes)]);
  const int64_t own = std::min(num_bytes, kPatternBytes), width = dtype_bytes(dtype);
  uint64_t state = 1;
  for (int64_t i = 0; i * width < own; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const float v = mean + deviation * near_normal(state ^ (state >> 29));
    std::byte* p = memory.get() + i * width;
    const uint16_t half = f32_to_bf16(v);
    if (dtype == DType::kF32)
      std::memcpy(p, &v, 4);
    else if (dtype == DType::kBF16)
      std::memcpy(p, &half, 2);
    else
      *p = std::byte(to_f8(std::clamp(v, -448.0f, 448.0f)));
  }
  for (int64_t done = own; done < num_bytes; done += own)
    std::memcpy(memory.get() + done, memory.get(), size_t(std::min(own, num_bytes - done)));
  return memory;
}

class Maker {
 public:
  Maker(const Config& config, const std::string& name) : config_(config), name_(name) {
    const QuantConfig& q = config.quant;
    if (q.form != QuantForm::kNone && (q.form != QuantForm::kScaled || q.dtype != DType::kF8E4M3 || q.block_k == 0))
      throw Error(Code::kUsage, fmt::format("{}: there are no synthetic weights in {}; only in bf16, f32 and FP8 with "
                                            "block scales",
                                            name, q.scheme));
  }

  Checkpoint make() {
    for (ImpliedTensor& t : implied_tensors(config_)) add(std::move(t));
    std::vector<std::shared_ptr<const void>> memory;
    for (Kind& kind : kinds_) {
      if (kind.largest == 0) continue;
      const auto numbers = pattern(kind.dtype, kind.deviation, kind.mean, kind.largest + kOffsets);
      for (TensorInfo& t : kind.tensors) {
        t.data = numbers.get() + offset_;
        offset_ = (offset_ + 37 * kAlignment) % kOffsets;
      }
      memory.push_back(numbers);
    }
    std::vector<TensorInfo> tensors;
    for (Kind& kind : kinds_) std::move(kind.tensors.begin(), kind.tensors.end(), std::back_inserter(tensors));
    return Checkpoint::in_memory(name_, std::move(tensors), std::move(memory));
  }

 private:
  struct Kind {
    DType dtype;
    float deviation, mean;
    int64_t largest = 0;
    std::vector<TensorInfo> tensors = {};
  };

  void add(ImpliedTensor tensor) {
    Kind& kind = kinds_.at(size_t(tensor.kind));
    tensor.info.file = name_;
    kind.largest = std::max(kind.largest, tensor.info.num_bytes);
    kind.tensors.push_back(std::move(tensor.info));
  }

  const Config& config_;
  const std::string name_;
  int64_t offset_ = 0;
  // By ImpliedTensor::Kind; the formats with zero points were refused.
  std::array<Kind, 4> kinds_ = {Kind{config_.dtype, kDeviation, 0.0f}, Kind{config_.dtype, 0.0f, 1.0f},
                                Kind{DType::kF8E4M3, kDeviation / kF8Scale, 0.0f},
                                Kind{DType::kF32, kF8Scale / 8, kF8Scale}};
};

}  // namespace

Checkpoint synthetic_checkpoint(const Config& config, const std::string& name) {
  return Maker(config, name).make();
}

}  // namespace moectl
