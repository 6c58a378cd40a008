// LocalGroup: what ranks that are threads of one process need of each other on the host: a barrier, values, addresses.
// Every wait ends: with the last rank, with an abort, or at a deadline that names the ranks that are missing.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/comm/communicator.h"

namespace moectl {

// "dispatch of layer 12"
std::string text_of(const PeerOperation& operation);

class LocalGroup {
 public:
  LocalGroup(int size, LocalGroupOptions options);

  int size() const { return int(arrived_.size()); }
  std::chrono::milliseconds deadline() const { return deadline_; }
  int number_of(int rank) const { return first_rank_ + rank; }  // for messages
  // `operation`: what the rank waits in, for the message of a deadline.
  void barrier(int rank, const char* operation);
  // `value` of each rank. `call` counts the rank's calls.
  std::vector<int64_t> gather(int rank, uint64_t call, int64_t value, const char* operation);
  void abort(const std::string& reason);
  // Throws GroupAborted after an abort.
  void check();

 private:
  static constexpr int kSlices = 20;
  using Values = std::vector<int64_t>;

  void check_locked() const;
  void end(const std::string& reason);
  std::vector<int> missing() const;

  const std::chrono::microseconds slice_;
  const std::chrono::milliseconds deadline_;
  const int first_rank_;
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

// The registered buffers of one rank, and where its peers' are.
class RegisteredBuffers {
 public:
  RegisteredBuffers(LocalGroup& group, int rank) : group_(group), rank_(rank) {}
  // Communicator::register_buffer and all_gather_host.
  std::vector<std::byte*> add(void* data, int64_t num_bytes);
  std::vector<int64_t> gather(int64_t value, const char* operation);
  // The places of all ranks that correspond to one in a registered buffer. Memory that was registered again, after its
  // first owner freed it, is the latest owner's.
  std::vector<std::byte*> peers_of(const void* data, int64_t num_bytes) const;
  std::vector<float*> floats_of(const float* data, int64_t count) const;

 private:
  struct Registered {
    std::byte* data;
    int64_t num_bytes;
    std::vector<std::byte*> peers;
  };
  LocalGroup& group_;
  const int rank_;
  uint64_t num_gathers_ = 0;
  std::vector<Registered> registered_;
};

// The collectives of ranks that address each other's memory, by three primitives of their devices.
class PeerMemoryCommunicator : public Communicator {
 public:
  PeerMemoryCommunicator(std::shared_ptr<LocalGroup> group, int rank)
      : group_(std::move(group)), rank_(rank), buffers_(*group_, rank) {}
  int rank() const final { return rank_; }
  int size() const final { return group_->size(); }
  std::vector<std::byte*> register_buffer(void* data, int64_t num_bytes) final { return buffers_.add(data, num_bytes); }
  std::vector<int64_t> all_gather_host(int64_t value) final { return buffers_.gather(value, "all_gather_host"); }
  void barrier(Stream stream) final { wait_for_peers("barrier", stream); }
  void all_gather(const void* send, void* recv, int64_t num_bytes, Stream stream) final;
  void all_to_all(const void* send, void* recv, int64_t num_bytes, Stream stream) final;
  void all_reduce(View<float> data, Stream stream) override;
  void reduce_scatter(View<const float> send, View<float> recv, Stream stream) final;

 protected:
  virtual void wait_for_peers(const char* operation, Stream) = 0;  // barrier(), of a collective
  virtual void copy(void* to, const void* from, int64_t num_bytes, Stream) = 0;
  // out[i] = the sum of rows[r][i], in rank order.
  virtual void sum(const std::vector<const float*>& rows, View<float> out, Stream) = 0;
  LocalGroup& group() { return *group_; }
  // Aborts the group when a wait of this rank's kernels ended without a peer.
  void report_missing_peer();

 private:
  void copy_unless_same(void* to, const void* from, int64_t num_bytes, Stream stream);
  void sum_part(const std::vector<float*>& of, int64_t begin, int64_t end, float* out, Stream stream);

  const std::shared_ptr<LocalGroup> group_;
  const int rank_;
  RegisteredBuffers buffers_;
};

}  // namespace moectl
