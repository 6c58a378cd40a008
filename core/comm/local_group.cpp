#include "core/comm/local_group.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/check.h"

namespace moectl {

LocalGroup::LocalGroup(int size, LocalGroupOptions options)
    : slice_(std::chrono::microseconds(options.deadline) / kSlices),
      deadline_(options.deadline),
      values_{Values(size_t(size)), Values(size_t(size))},
      arrived_(size_t(size)) {}

void LocalGroup::barrier(int rank, const char* operation) {
  std::unique_lock lock(mutex_);
  check_locked();
  arrived_[size_t(rank)] = true;
  if (std::ranges::all_of(arrived_, [](bool here) { return here; })) {
    std::fill(arrived_.begin(), arrived_.end(), false);
    ++generation_;
    changed_.notify_all();
    return;
  }
  const uint64_t generation = generation_;
  const auto ended = [&] { return aborted_ || generation_ != generation; };
  // Time while the whole process is stopped (SIGSTOP, a suspended machine) spends one of the slices at most.
  for (int slice = 0; slice < kSlices; ++slice)
    if (changed_.wait_for(lock, slice_, ended)) {
      if (generation_ == generation) check_locked();
      return;
    }
  end(fmt::format("rank {} waited {:.3g} s in {} for rank {}", rank, deadline_.count(), operation,
                  fmt::join(missing(), ", ")));
  throw Error(Code::kUnavailable, reason_);
}

std::vector<int64_t> LocalGroup::gather(int rank, uint64_t call, int64_t value, const char* operation) {
  Values& values = values_[call % 2];
  {
    std::lock_guard lock(mutex_);
    check_locked();  // after an abort no barrier keeps a rank from being many calls ahead
    values[size_t(rank)] = value;
  }
  barrier(rank, operation);
  std::lock_guard lock(mutex_);
  return values;
}

void LocalGroup::abort(const std::string& reason) {
  std::lock_guard lock(mutex_);
  end(reason);
}

void LocalGroup::check() {
  std::lock_guard lock(mutex_);
  check_locked();
}

void LocalGroup::check_locked() const {
  if (aborted_) throw Error(Code::kUnavailable, "a peer rank failed: " + reason_);
}

void LocalGroup::end(const std::string& reason) {
  if (!aborted_) reason_ = reason;
  aborted_ = true;
  changed_.notify_all();
}

std::vector<int> LocalGroup::missing() const {
  std::vector<int> ranks;
  for (int r = 0; r < size(); ++r)
    if (!arrived_[size_t(r)]) ranks.push_back(r);
  return ranks;
}

std::vector<std::byte*> RegisteredBuffers::add(void* data, int64_t num_bytes) {
  CHECK(data && num_bytes >= 0, "a buffer of {} bytes at {}", num_bytes, data);
  Registered buffer{static_cast<std::byte*>(data), num_bytes, {}};
  for (int64_t bytes : gather(num_bytes, "register_buffer"))
    CHECK(bytes == num_bytes, "rank {} registers {} bytes, a peer {}", rank_, num_bytes, bytes);
  for (int64_t address : gather(reinterpret_cast<int64_t>(data), "register_buffer"))
    buffer.peers.push_back(reinterpret_cast<std::byte*>(address));
  registered_.push_back(buffer);
  return buffer.peers;
}

std::vector<int64_t> RegisteredBuffers::gather(int64_t value, const char* operation) {
  return group_.gather(rank_, num_gathers_++, value, operation);
}

std::vector<std::byte*> RegisteredBuffers::peers_of(const void* data, int64_t num_bytes) const {
  const auto* p = static_cast<const std::byte*>(data);
  for (auto it = registered_.rbegin(); it != registered_.rend(); ++it)
    if (p >= it->data && p + num_bytes <= it->data + it->num_bytes) {
      std::vector<std::byte*> peers = it->peers;
      for (std::byte*& peer : peers) peer += p - it->data;
      return peers;
    }
  throw Error(Code::kInternal, fmt::format("rank {}: {} bytes of no registered buffer", rank_, num_bytes));
}

std::vector<float*> RegisteredBuffers::floats_of(const float* data, int64_t count) const {
  std::vector<float*> of;
  for (std::byte* p : peers_of(data, count * int64_t(sizeof(float)))) of.push_back(reinterpret_cast<float*>(p));
  return of;
}

}  // namespace moectl
