#include "core/engine/device_sampler.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"

namespace moectl {
namespace {

template <class T>
int64_t bytes_of(int64_t count) {
  return count * int64_t(sizeof(T));
}

}  // namespace

DeviceSampler::DeviceSampler(const ModelLimits& limits, int32_t vocab_size, Ops& ops)
    : ops_(ops), max_rows_(limits.max_logits), maker_(vocab_size) {
  host_rows_ = ops.alloc_host(bytes_of<SamplingRow>(max_rows_));
  device_rows_ = ops.alloc(bytes_of<SamplingRow>(max_rows_));
  host_out_ = ops.alloc_host(bytes_of<SampledRow>(max_rows_));
  device_out_ = ops.alloc(bytes_of<SampledRow>(max_rows_));
  reserve_adjustments(64 * max_rows_);
}

// Penalties touch as many tokens as the text has different ones: the room grows with the first request that needs it.
void DeviceSampler::reserve_adjustments(int64_t count) {
  if (count <= max_adjustments_) return;
  max_adjustments_ = std::max(count, 2 * max_adjustments_);
  host_adjustments_ = ops_.alloc_host(bytes_of<LogitAdjustment>(max_adjustments_));
  device_adjustments_ = ops_.alloc(bytes_of<LogitAdjustment>(max_adjustments_));
}

void DeviceSampler::launch(View<const float> logits) {
  const int64_t n = int64_t(rows_.size()), num_adjustments = int64_t(adjustments_.size());
  CHECK(n == logits.dim(0) && n <= max_rows_, "{} sampling rows for {} rows of logits, at most {}", n, logits.dim(0),
        max_rows_);
  if (n == 0) return;
  const Stream stream = ops_.stream();
  const auto send = [&]<class T>(const std::vector<T>& from, const Buffer& host, const Buffer& device) {
    const int64_t bytes = bytes_of<T>(int64_t(from.size()));
    if (bytes > 0) std::memcpy(host.get(), from.data(), size_t(bytes));
    if (bytes > 0) ops_.copy(device.get(), host.get(), bytes, stream);
    return View<const T>(reinterpret_cast<const T*>(device.get()), {int64_t(from.size())});
  };
  reserve_adjustments(num_adjustments);
  const View<SampledRow> out(reinterpret_cast<SampledRow*>(device_out_.get()), {n});
  ops_.sample_rows({.logits = logits,
                    .rows = send(rows_, host_rows_, device_rows_),
                    .adjustments = send(adjustments_, host_adjustments_, device_adjustments_),
                    .out = out},
                   stream);
  ops_.copy(host_out_.get(), out.data, bytes_of<SampledRow>(n), stream);
}

}  // namespace moectl
