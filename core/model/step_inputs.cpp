#include "core/model/step_inputs.h"

#include <algorithm>
#include <bit>

#include "core/base/check.h"

namespace moectl {
namespace {

int64_t max_pages(const ModelLimits& limits) {
  return (limits.max_model_len + kPageSize - 1) / kPageSize;
}

void find_prefill_chunks(const Batch& batch, int64_t min_rows, std::vector<PrefillChunk>& out) {
  const int64_t n = batch.num_tokens();
  out.clear();
  if (min_rows == 0) return;
  for (int64_t begin = 0, end = 0; begin < n; begin = end) {
    const int32_t seq = batch.seq_idx[size_t(begin)], position = batch.positions[size_t(begin)];
    for (end = begin + 1; end < n && batch.seq_idx[size_t(end)] == seq; ++end)
      if (batch.positions[size_t(end)] - position != end - begin) break;
    if (end - begin >= min_rows) out.push_back({begin, end - begin, seq, position});
  }
}

}  // namespace

int64_t StepInputs::page_stride(int64_t max_pages) {
  return int64_t(std::bit_ceil(uint64_t(std::max<int64_t>(max_pages, 4))));
}

int64_t StepInputs::num_bytes(const ModelLimits& limits) {
  return int64_t{limits.max_tokens} * (8 + 3 * 4) + 2 * 4 + int64_t{limits.max_tokens + limits.max_logits} * 4 +
         int64_t{std::max(limits.max_seqs, 1)} * page_stride(max_pages(limits)) * 4;
}

StepInputs::StepInputs(const ModelLimits& limits, Device& device, int64_t min_chunk)
    : device_(device), max_bytes_(num_bytes(limits)), min_chunk_(min_chunk) {
  inputs_ = device.alloc(max_bytes_);
  for (Buffer& host : host_) host = device.alloc_host(max_bytes_);
}

void StepInputs::set(const Batch& batch, int64_t num_rows, int64_t num_logits, int64_t page_stride, Stream stream) {
  const int64_t n = batch.num_tokens(), seqs = batch.num_seqs();
  CHECK(num_rows >= n && num_logits >= batch.num_logits() && page_stride >= batch.max_pages,
        "{} rows, {} logits, {} pages for a batch of {}, {}, {}", num_rows, num_logits, page_stride, n,
        batch.num_logits(), batch.max_pages);
  std::byte* const host = host_[next_host_].get();
  next_host_ = 1 - next_host_;
  int64_t used = 0;
  // The next `count` values of the block: written by `fill`, seen by the device through `view`.
  const auto put = [&]<class T>(View<const T>& view, std::initializer_list<int64_t> dims, auto&& fill) {
    const View<T> shape(nullptr, dims);
    CHECK(used + shape.size() * int64_t(sizeof(T)) <= max_bytes_, "inputs of {} values do not fit", shape.size());
    fill(reinterpret_cast<T*>(host + used), shape.size());
    view = View<const T>(reinterpret_cast<const T*>(inputs_.get() + used), dims);
    used += shape.size() * int64_t(sizeof(T));
  };
  const auto column = [](const auto& values, auto padding) {
    return [&values, padding](auto* to, int64_t size) {
      std::fill(std::ranges::copy(values, to).out, to + size, padding);
    };
  };
  put(slots, {num_rows}, [&](int64_t* to, int64_t size) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t position = batch.positions[size_t(i)];
      const int64_t page =
          batch.page_table[size_t(batch.seq_idx[size_t(i)]) * size_t(batch.max_pages) + size_t(position / kPageSize)];
      to[i] = page * kPageSize + position % kPageSize;
    }
    std::fill(to + n, to + size, -1);
  });
  put(token_ids, {num_rows}, column(batch.token_ids, 0));
  put(positions, {num_rows}, column(batch.positions, -1));
  put(seq_idx, {num_rows}, column(batch.seq_idx, 0));
  put(logits_rows, {num_logits}, column(batch.logits_rows, 0));
  put(one_expert, {2}, [&](int32_t* to, int64_t) {
    to[0] = 0;
    to[1] = int32_t(num_rows);
  });
  put(page_table, {std::max<int64_t>(seqs, 1), page_stride}, [&](int32_t* to, int64_t size) {
    std::fill(to, to + size, 0);
    for (int64_t s = 0; s < seqs; ++s)
      std::copy_n(batch.page_table.begin() + s * batch.max_pages, batch.max_pages, to + s * page_stride);
  });
  find_prefill_chunks(batch, min_chunk_, prefill_chunks);
  device_.copy(inputs_.get(), host, used, stream);
}

}  // namespace moectl
