// Ranks as threads of one process with one GPU each: GPUs store signals into each other's memory and read each other's
// buffers in place. The host takes part in nothing that is on a stream, so all of it may be captured.
#include <atomic>

#include "core/base/check.h"
#include "core/comm/local_group.h"
#include "kernels/peer.h"

namespace moectl {
namespace {

// What the ranks' devices share.
struct PeerGroup {
  struct Rank {
    Buffer flags, generation, status;  // PeerBarrierArgs
  };
  std::vector<Rank> ranks;

  PeerStatus& status(int rank) { return *reinterpret_cast<PeerStatus*>(ranks[size_t(rank)].status.get()); }
};

class P2pCommunicator final : public Communicator {
 public:
  P2pCommunicator(std::shared_ptr<LocalGroup> host, std::shared_ptr<PeerGroup> peers, Device& device, int rank)
      : host_(std::move(host)), peers_(std::move(peers)), device_(device), rank_(rank), buffers_(*host_, rank) {
    for (const PeerGroup::Rank& r : peers_->ranks) flags_.push_back(reinterpret_cast<uint32_t*>(r.flags.get()));
  }
  int rank() const override { return rank_; }
  int size() const override { return host_->size(); }
  bool capturable() const override { return true; }

  void abort(const std::string& reason) override {
    host_->abort(reason);
    for (int r = 0; r < size(); ++r) std::atomic_ref(peers_->status(r).aborted).store(1);
  }
  void check() override {
    const int missing = std::atomic_ref(peers_->status(rank_).missing).load();
    if (missing != 0)
      host_->abort(fmt::format("rank {} waited {} s on its GPU for rank {}", rank_, kPeerTimeout.count(), missing - 1));
    host_->check();
  }

  std::vector<std::byte*> register_buffer(void* data, int64_t num_bytes) override {
    return buffers_.add(data, num_bytes);
  }
  std::vector<int64_t> all_gather_host(int64_t value) override { return buffers_.gather(value, "all_gather_host"); }

  void barrier(Stream stream) override {
    const PeerGroup::Rank& mine = peers_->ranks[size_t(rank_)];
    device_.peers()->barrier({.flags = flags_,
                              .rank = rank_,
                              .generation = reinterpret_cast<uint32_t*>(mine.generation.get()),
                              .status = &peers_->status(rank_),
                              .timeout_ns = std::chrono::nanoseconds(kPeerTimeout).count()},
                             stream);
  }

  void all_gather(const void* send, void* recv, int64_t num_bytes, Stream stream) override {
    std::vector<std::byte*> from = buffers_.peers_of(recv, size() * num_bytes);
    if (send == static_cast<std::byte*>(recv) + rank_ * num_bytes)
      for (int r = 0; r < size(); ++r) from[size_t(r)] += r * num_bytes;
    else
      from = buffers_.peers_of(send, num_bytes);
    barrier(stream);  // every rank's data is there
    for (int r = 0; r < size(); ++r)
      copy(static_cast<std::byte*>(recv) + r * num_bytes, from[size_t(r)], num_bytes, stream);
    barrier(stream);  // every rank has read it
  }

  void all_to_all(const void* send, void* recv, int64_t num_bytes, Stream stream) override {
    const std::vector<std::byte*> from = buffers_.peers_of(send, size() * num_bytes);
    buffers_.peers_of(recv, size() * num_bytes);
    barrier(stream);
    for (int r = 0; r < size(); ++r)
      copy(static_cast<std::byte*>(recv) + r * num_bytes, from[size_t(r)] + rank_ * num_bytes, num_bytes, stream);
    barrier(stream);
  }

  // Two-shot: rank r sums slice r into its own copy, which no other rank touches meanwhile; then slices are gathered.
  void all_reduce(View<float> data, Stream stream) override {
    const std::vector<float*> of = buffers_.floats_of(data.data, data.size());
    const auto begin = [&](int r) { return data.size() * r / size(); };
    barrier(stream);
    sum(of, begin(rank_), begin(rank_ + 1), data.data + begin(rank_), stream);
    barrier(stream);
    for (int r = 0; r < size(); ++r)
      copy(data.data + begin(r), of[size_t(r)] + begin(r), (begin(r + 1) - begin(r)) * int64_t(sizeof(float)), stream);
    barrier(stream);
  }

  void reduce_scatter(View<const float> send, View<float> recv, Stream stream) override {
    const int64_t n = recv.size();
    CHECK(send.size() == size() * n, "reduce_scatter of {} values to {} per rank of {}", send.size(), n, size());
    const std::vector<float*> of = buffers_.floats_of(send.data, send.size());
    buffers_.peers_of(recv.data, n * int64_t(sizeof(float)));
    barrier(stream);
    sum(of, rank_ * n, (rank_ + 1) * n, recv.data, stream);
    barrier(stream);
  }

 private:
  void copy(void* to, const void* from, int64_t num_bytes, Stream stream) {
    if (to != from && num_bytes > 0) device_.copy(to, from, num_bytes, stream);
  }
  void sum(const std::vector<float*>& of, int64_t begin, int64_t end, float* out, Stream stream) {
    std::vector<const float*> rows;
    for (const float* p : of) rows.push_back(p + begin);
    device_.peers()->sum({rows, View<float>(out, {end - begin})}, stream);
  }

  std::shared_ptr<LocalGroup> host_;
  std::shared_ptr<PeerGroup> peers_;
  Device& device_;
  const int rank_;
  RegisteredBuffers buffers_;
  std::vector<uint32_t*> flags_;  // by rank
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_p2p_communicators(const std::vector<Device*>& devices,
                                                                  LocalGroupOptions options) {
  const int size = int(devices.size());
  CHECK(size <= kMaxPeers, "{} ranks in one process; at most {}", size, kMaxPeers);
  auto host = std::make_shared<LocalGroup>(size, options);
  auto peers = std::make_shared<PeerGroup>();
  for (Device* device : devices) {
    CHECK(device->peers(), "a rank's device sends no signals");
    for (Device* other : devices)
      if (const std::string why = device->peers()->connect(other->peers()->ordinal()); !why.empty())
        throw Error(Code::kBadConfig, why + "; run its ranks in instances of their own");
    peers->ranks.push_back({.flags = device->alloc(size * int64_t(sizeof(uint32_t))),
                            .generation = device->alloc(sizeof(uint32_t)),
                            .status = device->alloc_host(sizeof(PeerStatus))});
  }
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<P2pCommunicator>(host, peers, *devices[size_t(r)], r));
  return all;
}

}  // namespace moectl
