#include "core/comm/local_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>

#include "core/base/check.h"

namespace moectl {
namespace {

double seconds(std::chrono::duration<double> t) {
  return t.count();
}

}  // namespace

LocalGroup::LocalGroup(int size, LocalGroupOptions options)
    : slice_(std::chrono::microseconds(options.deadline) / kSlices),
      deadline_(options.deadline),
      first_rank_(options.first_rank),
      values_{Values(size_t(size)), Values(size_t(size))},
      arrived_(size_t(size)) {}

std::string text_of(const PeerOperation& operation) {
  constexpr const char* kNames[] = {"no operation",  "a barrier",     "dispatch",      "combine",
                                    "an all-gather", "an all-to-all", "an all-reduce", "a reduce-scatter"};
  const char* kind = kNames[operation.kind & 7];
  return operation.layer < 0 ? kind : fmt::format("{} of layer {}", kind, operation.layer);
}

std::string Communicator::last_operation() {
  return text_of(PeerOperation::of_code(std::atomic_ref(peer_wait().status->at).load()));
}

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
  end(fmt::format("rank {} waited {:.3g} s in {} for rank {}", number_of(rank), seconds(deadline_), operation,
                  fmt::join(missing(), ", ")));
  check_locked();
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
  if (aborted_) throw GroupAborted(reason_);
}

void LocalGroup::end(const std::string& reason) {
  if (!aborted_) reason_ = reason;
  aborted_ = true;
  changed_.notify_all();
}

std::vector<int> LocalGroup::missing() const {
  std::vector<int> ranks;
  for (int r = 0; r < size(); ++r)
    if (!arrived_[size_t(r)]) ranks.push_back(number_of(r));
  return ranks;
}

std::vector<std::byte*> RegisteredBuffers::add(void* data, int64_t num_bytes) {
  CHECK(data && num_bytes >= 0, "a buffer of {} bytes at {}", num_bytes, data);
  Registered buffer{static_cast<std::byte*>(data), num_bytes, {}};
  for (int64_t bytes : gather(num_bytes, "register_buffer"))
    CHECK(bytes == num_bytes, "rank {} registers {} bytes, a peer {}", group_.number_of(rank_), num_bytes, bytes);
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
  throw Error(Code::kInternal,
              fmt::format("rank {}: {} bytes of no registered buffer", group_.number_of(rank_), num_bytes));
}

std::vector<float*> RegisteredBuffers::floats_of(const float* data, int64_t count) const {
  std::vector<float*> of;
  for (std::byte* p : peers_of(data, count * int64_t(sizeof(float)))) of.push_back(reinterpret_cast<float*>(p));
  return of;
}

void PeerMemoryCommunicator::report_missing_peer() {
  const PeerWait wait = peer_wait();
  PeerStatus& status = *wait.status;
  const int missing = std::atomic_ref(status.missing).load();
  if (missing != 0)
    group_->abort(fmt::format("rank {} waited {:.3g} s for rank {} in {}", group_->number_of(rank_),
                              seconds(std::chrono::nanoseconds(wait.timeout_ns)), group_->number_of(missing - 1),
                              text_of(PeerOperation::of_code(std::atomic_ref(status.operation).load()))));
}

void PeerMemoryCommunicator::all_gather(const void* send, void* recv, int64_t num_bytes, Stream stream) {
  std::vector<std::byte*> from = buffers_.peers_of(recv, size() * num_bytes);
  if (send == static_cast<std::byte*>(recv) + rank_ * num_bytes)
    for (int r = 0; r < size(); ++r) from[size_t(r)] += r * num_bytes;
  else
    from = buffers_.peers_of(send, num_bytes);
  wait_for_peers("all_gather", stream);  // every rank's data is there
  for (int r = 0; r < size(); ++r)
    copy_unless_same(static_cast<std::byte*>(recv) + r * num_bytes, from[size_t(r)], num_bytes, stream);
  wait_for_peers("all_gather", stream);  // every rank has read it
}

void PeerMemoryCommunicator::all_to_all(const void* send, void* recv, int64_t num_bytes, Stream stream) {
  const std::vector<std::byte*> from = buffers_.peers_of(send, size() * num_bytes);
  buffers_.peers_of(recv, size() * num_bytes);
  wait_for_peers("all_to_all", stream);
  for (int r = 0; r < size(); ++r)
    copy_unless_same(static_cast<std::byte*>(recv) + r * num_bytes, from[size_t(r)] + rank_ * num_bytes, num_bytes,
                     stream);
  wait_for_peers("all_to_all", stream);
}

// Two-shot: rank r sums slice r into its own copy, which no other rank touches meanwhile; then slices are gathered.
void PeerMemoryCommunicator::all_reduce(View<float> data, Stream stream) {
  const std::vector<float*> of = buffers_.floats_of(data.data, data.size());
  const auto begin = [&](int r) { return data.size() * r / size(); };
  wait_for_peers("all_reduce", stream);
  sum_part(of, begin(rank_), begin(rank_ + 1), data.data + begin(rank_), stream);
  wait_for_peers("all_reduce", stream);
  for (int r = 0; r < size(); ++r)
    copy_unless_same(data.data + begin(r), of[size_t(r)] + begin(r), (begin(r + 1) - begin(r)) * int64_t(sizeof(float)),
                     stream);
  wait_for_peers("all_reduce", stream);
}

void PeerMemoryCommunicator::reduce_scatter(View<const float> send, View<float> recv, Stream stream) {
  const int64_t n = recv.size();
  CHECK(send.size() == size() * n, "reduce_scatter of {} values to {} per rank of {}", send.size(), n, size());
  const std::vector<float*> of = buffers_.floats_of(send.data, send.size());
  buffers_.peers_of(recv.data, n * int64_t(sizeof(float)));
  wait_for_peers("reduce_scatter", stream);
  sum_part(of, rank_ * n, (rank_ + 1) * n, recv.data, stream);
  wait_for_peers("reduce_scatter", stream);
}

void PeerMemoryCommunicator::copy_unless_same(void* to, const void* from, int64_t num_bytes, Stream stream) {
  if (to != from && num_bytes > 0) copy(to, from, num_bytes, stream);
}

void PeerMemoryCommunicator::sum_part(const std::vector<float*>& of, int64_t begin, int64_t end, float* out,
                                      Stream stream) {
  std::vector<const float*> rows;
  for (const float* p : of) rows.push_back(p + begin);
  sum(rows, View<float>(out, {end - begin}), stream);
}

}  // namespace moectl
