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
    Buffer flags, generation, status, ended;  // PeerBarrierArgs, PeerWait
    Buffer slots, slot_flags, slot_state;     // PeerAllReduceArgs; null: none
  };
  explicit PeerGroup(std::chrono::nanoseconds timeout) : timeout_ns(timeout.count()) {}

  const int64_t timeout_ns;  // of a wait on a device
  std::vector<Rank> ranks;
  LocalGroupOptions options;

  PeerStatus& status(int rank) { return *reinterpret_cast<PeerStatus*>(ranks[size_t(rank)].status.get()); }
};

int64_t slot_bytes(const LocalGroupOptions& options) {
  return options.one_shot_bytes / int64_t(sizeof(float)) * dtype_bytes(options.wire) / 16 * 16;
}

class P2pCommunicator final : public PeerMemoryCommunicator {
 public:
  P2pCommunicator(std::shared_ptr<LocalGroup> host, std::shared_ptr<PeerGroup> peers, Device& device, int rank)
      : PeerMemoryCommunicator(std::move(host), rank), peers_(std::move(peers)), device_(device) {
    for (const PeerGroup::Rank& r : peers_->ranks) {
      flags_.push_back(reinterpret_cast<uint32_t*>(r.flags.get()));
      slot_flags_.push_back(reinterpret_cast<uint32_t*>(r.slot_flags.get()));
      slots_.push_back(r.slots.get());
    }
  }
  bool capturable() const override { return true; }

  void abort(const std::string& reason) override {
    group().abort(reason);
    for (int r = 0; r < size(); ++r) std::atomic_ref(peers_->status(r).aborted).store(1);
  }
  void check() override {
    report_missing_peer();
    group().check();
  }
  PeerWait peer_wait() override {
    return {.status = &peers_->status(rank()),
            .ended = reinterpret_cast<uint32_t*>(peers_->ranks[size_t(rank())].ended.get()),
            .timeout_ns = peers_->timeout_ns};
  }
  void all_reduce(View<float> data, Stream stream) override {
    const LocalGroupOptions& options = peers_->options;
    if (size() == 1 || !options.is_one_shot(data.size())) return PeerMemoryCommunicator::all_reduce(data, stream);
    device_.peers()->all_reduce({.flags = slot_flags_,
                                 .slots = slots_,
                                 .slot_bytes = slot_bytes(options),
                                 .state = reinterpret_cast<uint32_t*>(peers_->ranks[size_t(rank())].slot_state.get()),
                                 .wait = peer_wait(),
                                 .rank = rank(),
                                 .wire = options.wire,
                                 .data = data},
                                stream);
  }

 private:
  void wait_for_peers(const char*, Stream stream) override {
    const PeerGroup::Rank& mine = peers_->ranks[size_t(rank())];
    device_.peers()->barrier({.flags = flags_,
                              .rank = rank(),
                              .generation = reinterpret_cast<uint32_t*>(mine.generation.get()),
                              .wait = peer_wait()},
                             stream);
  }
  void copy(void* to, const void* from, int64_t num_bytes, Stream stream) override {
    device_.copy(to, from, num_bytes, stream);
  }
  void sum(const std::vector<const float*>& rows, View<float> out, Stream stream) override {
    device_.peers()->sum({rows, out}, stream);
  }

  const std::shared_ptr<PeerGroup> peers_;
  Device& device_;
  std::vector<uint32_t*> flags_, slot_flags_;  // by rank
  std::vector<std::byte*> slots_;
};

}  // namespace

int64_t p2p_slots_bytes(int size, const LocalGroupOptions& options) {
  return size > 1 ? 2 * size * slot_bytes(options) : 0;
}

std::vector<std::unique_ptr<Communicator>> make_p2p_communicators(const std::vector<Device*>& devices,
                                                                  LocalGroupOptions options) {
  const int size = int(devices.size());
  if (size > kMaxPeers)
    throw Error(Code::kBadConfig, fmt::format("{} ranks on GPUs of one process; at most {}", size, kMaxPeers));
  auto host = std::make_shared<LocalGroup>(size, options);
  auto peers = std::make_shared<PeerGroup>(options.peer_timeout);
  peers->options = options;
  for (Device* device : devices) {
    CHECK(device->peers(), "a rank's device sends no signals");
    for (Device* other : devices)
      if (const std::string why = device->peers()->connect(other->peers()->ordinal()); !why.empty())
        throw Error(Code::kBadConfig, why + "; use --collectives nccl");
    peers->ranks.push_back({.flags = device->alloc(size * int64_t(sizeof(uint32_t))),
                            .generation = device->alloc(sizeof(uint32_t)),
                            .status = device->alloc_host(sizeof(PeerStatus)),
                            .ended = device->alloc(sizeof(uint32_t))});
    if (options.one_shot_bytes == 0 || size == 1) continue;
    PeerGroup::Rank& rank = peers->ranks.back();
    rank.slots = device->alloc(p2p_slots_bytes(size, options));
    rank.slot_flags = device->alloc(kAllReduceBlocks * size * int64_t(sizeof(uint32_t)));
    rank.slot_state = device->alloc(2 * int64_t(sizeof(uint32_t)));
  }
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<P2pCommunicator>(host, peers, *devices[size_t(r)], r));
  return all;
}

}  // namespace moectl
