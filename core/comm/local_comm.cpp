// Ranks as threads of one process: a barrier on a condition variable; data is copied straight out of the peers' memory.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "core/base/check.h"
#include "core/comm/communicator.h"

namespace moectl {
namespace {

class Group {
 public:
  Group(int size, LocalGroupOptions options)
      : slice_(std::chrono::microseconds(options.deadline) / kSlices),
        deadline_(options.deadline),
        values_{Values(size_t(size)), Values(size_t(size))},
        arrived_(size_t(size)) {}

  int size() const { return int(arrived_.size()); }

  // `operation`: what the rank waits in, for the message of a deadline.
  void barrier(int rank, const char* operation) {
    std::unique_lock lock(mutex_);
    check();
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
        if (generation_ == generation) check();
        return;
      }
    end(fmt::format("rank {} waited {:.3g} s in {} for rank {}", rank, deadline_.count(), operation,
                    fmt::join(missing(), ", ")));
    throw Error(Code::kUnavailable, reason_);
  }

  // `value` of each rank. `call` counts the rank's calls.
  std::vector<int64_t> gather(int rank, uint64_t call, int64_t value, const char* operation) {
    Values& values = values_[call % 2];
    {
      std::lock_guard lock(mutex_);
      check();  // after an abort no barrier keeps a rank from being many calls ahead
      values[size_t(rank)] = value;
    }
    barrier(rank, operation);
    std::lock_guard lock(mutex_);
    return values;
  }

  void abort(const std::string& reason) {
    std::lock_guard lock(mutex_);
    end(reason);
  }

 private:
  static constexpr int kSlices = 20;
  using Values = std::vector<int64_t>;

  void check() const {
    if (aborted_) throw Error(Code::kUnavailable, "a peer rank failed: " + reason_);
  }
  void end(const std::string& reason) {
    if (!aborted_) reason_ = reason;
    aborted_ = true;
    changed_.notify_all();
  }
  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int r = 0; r < size(); ++r)
      if (!arrived_[size_t(r)]) ranks.push_back(r);
    return ranks;
  }

  const std::chrono::microseconds slice_;
  const std::chrono::duration<double> deadline_;
  // Of gather(), by rank. Calls alternate between the two: a rank that is one call ahead overwrites nothing that a peer
  // still reads.
  std::array<Values, 2> values_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> arrived_;  // [rank], in the barrier that is going on
  uint64_t generation_ = 0;    // of barriers
  bool aborted_ = false;
  std::string reason_;
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  bool capturable() const override { return size() == 1; }
  void abort(const std::string& reason) override { group_->abort(reason); }

  std::vector<std::byte*> register_buffer(void* data, int64_t num_bytes) override {
    CHECK(data && num_bytes >= 0, "a buffer of {} bytes at {}", num_bytes, data);
    Registered buffer{static_cast<std::byte*>(data), num_bytes, {}};
    for (int64_t bytes : gather_host(num_bytes, "register_buffer"))
      CHECK(bytes == num_bytes, "rank {} registers {} bytes, a peer {}", rank_, num_bytes, bytes);
    for (int64_t address : gather_host(reinterpret_cast<int64_t>(data), "register_buffer"))
      buffer.peers.push_back(reinterpret_cast<std::byte*>(address));
    registered_.push_back(buffer);
    return buffer.peers;
  }

  std::vector<int64_t> all_gather_host(int64_t value) override { return gather_host(value, "all_gather_host"); }

  void barrier(Stream) override { group_->barrier(rank_, "barrier"); }

  void all_gather(const void* send, void* recv, int64_t num_bytes, Stream) override {
    std::vector<std::byte*> from = peers_of(recv, size() * num_bytes);
    if (send == static_cast<std::byte*>(recv) + rank_ * num_bytes)
      for (int r = 0; r < size(); ++r) from[size_t(r)] += r * num_bytes;
    else
      from = peers_of(send, num_bytes);
    group_->barrier(rank_, "all_gather");  // every rank's data is there
    for (int r = 0; r < size(); ++r) copy(static_cast<std::byte*>(recv) + r * num_bytes, from[size_t(r)], num_bytes);
    group_->barrier(rank_, "all_gather");  // every rank has read it
  }

  void all_to_all(const void* send, void* recv, int64_t num_bytes, Stream) override {
    const std::vector<std::byte*> from = peers_of(send, size() * num_bytes);
    peers_of(recv, size() * num_bytes);
    group_->barrier(rank_, "all_to_all");
    for (int r = 0; r < size(); ++r)
      copy(static_cast<std::byte*>(recv) + r * num_bytes, from[size_t(r)] + rank_ * num_bytes, num_bytes);
    group_->barrier(rank_, "all_to_all");
  }

  // Rank r sums slice r into its own copy, which no other rank touches meanwhile; then slices are gathered.
  void all_reduce(View<float> data, Stream) override {
    const std::vector<float*> of = floats_of(data.data, data.size());
    const auto begin = [&](int r) { return data.size() * r / size(); };
    group_->barrier(rank_, "all_reduce");
    sum(of, begin(rank_), begin(rank_ + 1), data.data + begin(rank_));
    group_->barrier(rank_, "all_reduce");
    for (int r = 0; r < size(); ++r)
      copy(data.data + begin(r), of[size_t(r)] + begin(r), (begin(r + 1) - begin(r)) * int64_t(sizeof(float)));
    group_->barrier(rank_, "all_reduce");
  }

  void reduce_scatter(View<const float> send, View<float> recv, Stream) override {
    const int64_t n = recv.size();
    CHECK(send.size() == size() * n, "reduce_scatter of {} values to {} per rank of {}", send.size(), n, size());
    const std::vector<float*> of = floats_of(send.data, send.size());
    peers_of(recv.data, n * int64_t(sizeof(float)));
    group_->barrier(rank_, "reduce_scatter");
    sum(of, rank_ * n, (rank_ + 1) * n, recv.data);
    group_->barrier(rank_, "reduce_scatter");
  }

 private:
  struct Registered {
    std::byte* data;
    int64_t num_bytes;
    std::vector<std::byte*> peers;
  };

  std::vector<int64_t> gather_host(int64_t value, const char* operation) {
    return group_->gather(rank_, num_gathers_++, value, operation);
  }

  // The places of all ranks that correspond to one in a registered buffer. Memory that was registered again, after its
  // first owner freed it, is the latest owner's.
  std::vector<std::byte*> peers_of(const void* data, int64_t num_bytes) const {
    const auto* p = static_cast<const std::byte*>(data);
    for (auto it = registered_.rbegin(); it != registered_.rend(); ++it)
      if (p >= it->data && p + num_bytes <= it->data + it->num_bytes) {
        std::vector<std::byte*> peers = it->peers;
        for (std::byte*& peer : peers) peer += p - it->data;
        return peers;
      }
    throw Error(Code::kInternal, fmt::format("rank {}: {} bytes of no registered buffer", rank_, num_bytes));
  }
  std::vector<float*> floats_of(const float* data, int64_t count) const {
    std::vector<float*> of;
    for (std::byte* p : peers_of(data, count * int64_t(sizeof(float)))) of.push_back(reinterpret_cast<float*>(p));
    return of;
  }

  static void copy(void* to, const void* from, int64_t num_bytes) {
    if (to != from && num_bytes > 0) std::memcpy(to, from, size_t(num_bytes));
  }
  static void sum(const std::vector<float*>& of, int64_t begin, int64_t end, float* out) {
    for (int64_t i = begin; i < end; ++i) {
      float total = of[0][i];
      for (size_t r = 1; r < of.size(); ++r) total = total + of[r][i];
      out[i - begin] = total;
    }
  }

  std::shared_ptr<Group> group_;
  const int rank_;
  uint64_t num_gathers_ = 0;
  std::vector<Registered> registered_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_communicators(int size, LocalGroupOptions options) {
  auto group = std::make_shared<Group>(size, options);
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<LocalCommunicator>(group, r));
  return all;
}

}  // namespace moectl
