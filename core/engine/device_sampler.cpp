#include "core/engine/device_sampler.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/check.h"

namespace moectl {
namespace {

template <class T>
int64_t bytes_of(int64_t count) {
  return count * int64_t(sizeof(T));
}

}  // namespace

DeviceSampler::DeviceSampler(const ModelLimits& limits, int32_t vocab_size, Ops& ops, bool may_grow)
    : ops_(ops), max_rows_(limits.max_logits), maker_(vocab_size) {
  // A row's adjustments name different tokens: those of its text, and those of its own biases and stop ids.
  constexpr int64_t kUsual = 64, kOwn = 4096;
  const int64_t per_row = may_grow ? kUsual : std::min<int64_t>(vocab_size, limits.max_model_len + kOwn);
  Device& device = ops.device();
  device_rows_ = device.alloc(bytes_of<SamplingRow>(max_rows_));
  device_out_ = device.alloc(bytes_of<SampledRow>(max_rows_));
  device_previous_ = device.alloc(bytes_of<int32_t>(max_rows_));
  for (Side& side : sides_) {
    side.rows = device.alloc_host(bytes_of<SamplingRow>(max_rows_));
    side.out = device.alloc_host(bytes_of<SampledRow>(max_rows_));
    reserve_adjustments(side, per_row * max_rows_);
  }
}

// Penalties touch as many tokens as the text has different ones: the room grows with the first request that needs it.
// The side's own memory is read by no step now: the last that did has been waited for.
void DeviceSampler::reserve_adjustments(Side& side, int64_t count) {
  if (count > side.max_adjustments) {
    side.max_adjustments = std::max(count, 2 * side.max_adjustments);
    side.adjustments = ops_.device().alloc_host(bytes_of<LogitAdjustment>(side.max_adjustments));
  }
  if (count > max_adjustments_) {
    max_adjustments_ = std::max(count, 2 * max_adjustments_);
    ops_.device().synchronize(ops_.device().stream());  // a step in flight may read what is replaced
    device_adjustments_ = ops_.device().alloc(bytes_of<LogitAdjustment>(max_adjustments_));
  }
}

int DeviceSampler::launch(View<const float> logits, View<int32_t> next_token_ids) {
  const int64_t n = int64_t(rows_.size()), num_adjustments = int64_t(adjustments_.size());
  CHECK(n == logits.dim(0) && n <= max_rows_, "{} sampling rows for {} rows of logits, at most {}", n, logits.dim(0),
        max_rows_);
  const int step = std::exchange(turn_, 1 - turn_);
  if (n == 0) return step;
  Side& side = sides_[size_t(step)];
  const Stream stream = ops_.device().stream();
  const auto send = [&]<class T>(const std::vector<T>& from, const Buffer& host, const Buffer& device) {
    const int64_t bytes = bytes_of<T>(int64_t(from.size()));
    if (bytes > 0) std::memcpy(host.get(), from.data(), size_t(bytes));
    if (bytes > 0) ops_.device().copy(device.get(), host.get(), bytes, stream);
    return View<const T>(reinterpret_cast<const T*>(device.get()), {int64_t(from.size())});
  };
  reserve_adjustments(side, num_adjustments);
  View<const int32_t> previous;
  if (std::ranges::any_of(rows_, [](const SamplingRow& row) { return row.pending_row >= 0; })) {
    ops_.device().copy(device_previous_.get(), next_token_ids.data, bytes_of<int32_t>(max_rows_), stream);
    previous = View<const int32_t>(reinterpret_cast<const int32_t*>(device_previous_.get()), {max_rows_});
  }
  const View<SampledRow> out(reinterpret_cast<SampledRow*>(device_out_.get()), {n});
  ops_.device_sampling()->sample_rows({.logits = logits,
                                       .rows = send(rows_, side.rows, device_rows_),
                                       .adjustments = send(adjustments_, side.adjustments, device_adjustments_),
                                       .out = out,
                                       .next_token_ids = next_token_ids.first(n),
                                       .sampled = previous},
                                      stream);
  ops_.device().copy(side.out.get(), out.data, bytes_of<SampledRow>(n), stream);
  return step;
}

}  // namespace moectl
