#include "core/comm/nccl_comm.h"

#include <algorithm>
#include <cstdlib>

#include "core/base/check.h"
#include "core/comm/collectives.h"
#include "core/comm/nccl_group.h"

namespace moectl {
namespace {

// Ends the group with the last of its communicators.
struct NcclSession {
  explicit NcclSession(std::shared_ptr<NcclGroup> g) : group(std::move(g)) {}
  ~NcclSession() { group->stop(); }
  NcclSession(const NcclSession&) = delete;
  NcclSession& operator=(const NcclSession&) = delete;

  const std::shared_ptr<NcclGroup> group;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<NcclSession> session, int rank)
      : session_(std::move(session)), group_(*session_->group), rank_(rank), buffers_(group_.host(), rank) {
    const int64_t floats = group_.options().deterministic ? scratch_floats() + size() : size();
    scratch_ = group_.device(rank).alloc(floats * int64_t(sizeof(float)));
  }
  int rank() const override { return rank_; }
  int size() const override { return group_.size(); }
  bool capturable() const override { return true; }
  void abort(const std::string& reason) override { group_.abort(reason); }
  void check() override { group_.check(rank_); }
  PeerWait peer_wait() override {
    return {.status = &group_.status(rank_), .timeout_ns = std::chrono::nanoseconds(group_.options().timeout).count()};
  }

  // Peers' memory is out of reach; the buffers are kept so that all communicators take the same ones.
  std::vector<std::byte*> register_buffer(void* data, int64_t num_bytes) override {
    buffers_.add(data, num_bytes);
    std::vector<std::byte*> by_rank(static_cast<size_t>(size()));
    by_rank[size_t(rank_)] = static_cast<std::byte*>(data);
    return by_rank;
  }
  std::vector<int64_t> all_gather_host(int64_t value) override { return buffers_.gather(value, "all_gather_host"); }

  void barrier(Stream stream) override {
    float* p = scratch();
    issue(PeerOperation::kBarrier, stream,
          [&](ncclComm_t comm, cudaStream_t s) { return nccl().all_gather(p + rank_, p, 1, ncclFloat32, comm, s); });
  }

  void all_gather(const void* send, void* recv, int64_t num_bytes, Stream stream) override {
    buffers_.peers_of(send, num_bytes);
    buffers_.peers_of(recv, size() * num_bytes);
    if (num_bytes == 0) return;
    issue(PeerOperation::kAllGather, stream, [&](ncclComm_t comm, cudaStream_t s) {
      return nccl().all_gather(send, recv, size_t(num_bytes), ncclUint8, comm, s);
    });
  }

  void all_to_all(const void* send, void* recv, int64_t num_bytes, Stream stream) override {
    buffers_.peers_of(send, size() * num_bytes);
    buffers_.peers_of(recv, size() * num_bytes);
    const auto* from = static_cast<const std::byte*>(send);
    auto* to = static_cast<std::byte*>(recv);
    exchange(PeerOperation::kAllToAll, stream, [&](int peer) {
      return Exchange{{from + peer * num_bytes, num_bytes}, {to + peer * num_bytes, num_bytes}};
    });
  }

  void all_reduce(View<float> data, Stream stream) override {
    buffers_.floats_of(data.data, data.size());
    if (!group_.options().deterministic) {
      if (data.size() > 0)
        issue(PeerOperation::kAllReduce, stream, [&](ncclComm_t comm, cudaStream_t s) {
          return nccl().all_reduce(data.data, data.data, size_t(data.size()), ncclFloat32, ncclSum, comm, s);
        });
      return;
    }
    for (int64_t at = 0; at < data.size(); at += scratch_floats())
      all_reduce_in_order(View<float>(data.data + at, {std::min(scratch_floats(), data.size() - at)}), stream);
  }

  void reduce_scatter(View<const float> send, View<float> recv, Stream stream) override {
    const int64_t n = recv.size();
    CHECK(send.size() == size() * n, "reduce_scatter of {} values to {} per rank of {}", send.size(), n, size());
    buffers_.floats_of(send.data, send.size());
    buffers_.floats_of(recv.data, n);
    if (!group_.options().deterministic) {
      if (n > 0)
        issue(PeerOperation::kReduceScatter, stream, [&](ncclComm_t comm, cudaStream_t s) {
          return nccl().reduce_scatter(send.data, recv.data, size_t(n), ncclFloat32, ncclSum, comm, s);
        });
      return;
    }
    const int64_t chunk = std::max<int64_t>(scratch_floats() / size(), 1);
    for (int64_t at = 0; at < n; at += chunk) {
      const int64_t count = std::min(chunk, n - at);
      exchange(PeerOperation::kReduceScatter, stream, [&](int peer) {
        return Exchange{floats(send.data + peer * n + at, count), floats(scratch() + peer * count, count)};
      });
      sum_scratch(count, recv.data + at, stream);
    }
  }

 private:
  struct ConstBytes {
    const void* data;
    int64_t num_bytes;
  };
  struct Bytes {
    void* data;
    int64_t num_bytes;
    operator ConstBytes() const { return {data, num_bytes}; }  // NOLINT: as View
  };
  struct Exchange {
    ConstBytes send;
    Bytes recv;
  };

  static Bytes floats(float* p, int64_t count) { return {p, count * int64_t(sizeof(float))}; }
  static ConstBytes floats(const float* p, int64_t count) { return {p, count * int64_t(sizeof(float))}; }
  int64_t scratch_floats() const { return group_.options().scratch_floats; }
  float* scratch() const { return reinterpret_cast<float*>(scratch_.get()); }
  const NcclFunctions& nccl() const { return group_.nccl(); }

  void issue(PeerOperation::Kind kind, Stream stream, const NcclGroup::Calls& calls) {
    group_.issue(rank_, {kind}, stream, calls);
  }

  // Sends to and receives from each rank what with(peer) says; sizes agree on both sides, and may be 0.
  template <class With>
  void exchange(PeerOperation::Kind kind, Stream stream, const With& with) {
    issue(kind, stream, [&](ncclComm_t comm, cudaStream_t s) {
      ncclResult_t first = ncclSuccess;
      const auto keep = [&](ncclResult_t result) {
        if (first == ncclSuccess) first = result;
      };
      for (int peer = 0; peer < size(); ++peer) {
        const Exchange e = with(peer);
        if (e.send.num_bytes > 0) keep(nccl().send(e.send.data, size_t(e.send.num_bytes), ncclUint8, peer, comm, s));
        if (e.recv.num_bytes > 0) keep(nccl().recv(e.recv.data, size_t(e.recv.num_bytes), ncclUint8, peer, comm, s));
      }
      return first;
    });
  }

  // Slice r is summed by rank r, then gathered by all.
  void all_reduce_in_order(View<float> data, Stream stream) {
    const auto slice = [&](int r) {
      const int64_t begin = data.size() * r / size();
      return floats(data.data + begin, data.size() * (r + 1) / size() - begin);
    };
    const Bytes mine = slice(rank_);
    const int64_t count = mine.num_bytes / int64_t(sizeof(float));
    exchange(PeerOperation::kAllReduce, stream, [&](int peer) {
      return Exchange{slice(peer), floats(scratch() + peer * count, count)};
    });
    sum_scratch(count, static_cast<float*>(mine.data), stream);
    exchange(PeerOperation::kAllReduce, stream, [&](int peer) {
      return peer == rank_ ? Exchange{} : Exchange{mine, slice(peer)};
    });
  }

  // out[i] = the sum of scratch[r * count + i] over the ranks, in their order.
  void sum_scratch(int64_t count, float* out, Stream stream) {
    std::vector<const float*> rows;
    for (int r = 0; r < size(); ++r) rows.push_back(scratch() + r * count);
    group_.device(rank_).peers()->sum({rows, View<float>(out, {count})}, stream);
  }

  const std::shared_ptr<NcclSession> session_;
  NcclGroup& group_;
  const int rank_;
  RegisteredBuffers buffers_;
  Buffer scratch_;
};

}  // namespace

std::string why_no_nccl() {
  return NcclLibrary::get().why_absent();
}

std::string nccl_version() {
  return fmt::format("{} ({})", NcclLibrary::get().version(), NcclLibrary::get().path());
}

std::vector<std::unique_ptr<Communicator>> make_nccl_communicators(const std::vector<Device*>& devices,
                                                                   NcclOptions options) {
  const int size = int(devices.size());
  if (size > kMaxPeers)
    throw Error(Code::kBadConfig, fmt::format("{} ranks on GPUs of one process; at most {}", size, kMaxPeers));
  for (Device* device : devices) CHECK(device->peers(), "a rank's device puts no work of a library into its stream");
  if (const std::string shared = shared_gpu(devices); !shared.empty())
    throw Error(Code::kBadConfig, shared + ": give each a GPU of its own (--devices), or use --collectives p2p");
  // All ranks are in this process: NCCL's bootstrap, which authenticates nobody, listens on the loopback alone.
  setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  if (const NcclLibrary& library = options.library ? *options.library : NcclLibrary::get(); !library.is_present())
    throw Error(Code::kBadConfig, library.why_absent());
  auto session = std::make_shared<NcclSession>(std::make_shared<NcclGroup>(devices, options));
  session->group->start();
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<NcclCommunicator>(session, r));
  return all;
}

}  // namespace moectl
