#include "core/model/tensor_parallel.h"

#include <algorithm>

#include "core/base/check.h"

namespace moectl {
namespace {

int64_t largest_share(int64_t num_tokens, int64_t size) {
  return (num_tokens + size - 1) / size;
}

}  // namespace

TensorParallel::TensorParallel(Communicator* group, const LocalDims& dims)
    : group_(group),
      size_(dims.tp_size),
      rank_(dims.tp_rank),
      shares_tokens_(dims.tp_size > 1 && !dims.splits_experts) {
  CHECK(group ? group->size() == size_ && group->rank() == rank_ : size_ == 1,
        "a shard of TP rank {} of {} in a group of {}", rank_, size_, group ? group->size() : 1);
}

void TensorParallel::register_buffer(View<float> buffer) {
  if (group_ && buffer.size() > 0) group_->register_buffer(buffer.data, buffer.size() * int64_t(sizeof(float)));
}

void TensorParallel::all_reduce(View<float> rows, Stream stream) {
  if (group_ && rows.size() > 0) group_->all_reduce(rows, stream);
}

void TensorParallel::all_gather(View<float> parts, Stream stream) {
  CHECK(parts.dim(0) == size_, "{} parts of {} ranks", parts.dim(0), size_);
  if (group_ && parts.size() > 0)
    group_->all_gather(parts.row(rank_), parts.data, parts.row_size() * int64_t(sizeof(float)), stream);
}

TensorParallel::Share TensorParallel::share(int64_t num_tokens) const {
  if (!shares_tokens_) return {0, num_tokens};
  const int64_t most = largest_share(num_tokens, size_), begin = std::min(rank_ * most, num_tokens);
  return {begin, std::min(most, num_tokens - begin)};
}

int64_t TensorParallel::max_share(int64_t max_tokens, const LocalDims& dims) {
  return dims.splits_experts ? max_tokens : largest_share(max_tokens, dims.tp_size);
}

int64_t TensorParallel::padded_rows(int64_t max_tokens, const LocalDims& dims) {
  return largest_share(max_tokens, dims.tp_size) * dims.tp_size;
}

// [size, rows of a share * row size]: the last shares may have fewer tokens, or none, and are padded.
View<float> TensorParallel::by_rank(View<float> rows) const {
  return View<float>(rows.data, {size_, largest_share(rows.dim(0), size_) * rows.row_size()});
}

void TensorParallel::reduce_scatter_shares(View<float> rows, Stream stream) {
  if (!shares_tokens_ || rows.size() == 0) return;
  const View<float> parts = by_rank(rows);
  group_->reduce_scatter(parts, View<float>(parts.row(rank_), {parts.row_size()}), stream);
}

void TensorParallel::all_gather_shares(View<float> rows, Stream stream) {
  if (shares_tokens_) all_gather(by_rank(rows), stream);
}

}  // namespace moectl
