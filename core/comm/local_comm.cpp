// Ranks as threads of one process whose memory the host addresses: data is copied straight out of the peers' memory.
#include <atomic>
#include <cstring>

#include "core/base/check.h"
#include "core/comm/local_group.h"

namespace moectl {
namespace {

class LocalCommunicator final : public PeerMemoryCommunicator {
 public:
  using Statuses = std::vector<PeerStatus>;  // by rank

  LocalCommunicator(std::shared_ptr<LocalGroup> group, std::shared_ptr<Statuses> statuses, int rank)
      : PeerMemoryCommunicator(std::move(group), rank), statuses_(std::move(statuses)) {}
  bool capturable() const override { return size() == 1; }
  void abort(const std::string& reason) override {
    group().abort(reason);
    for (PeerStatus& status : *statuses_) std::atomic_ref(status.aborted).store(1);
  }
  void check() override {
    report_missing_peer();
    group().check();
  }
  PeerWait peer_wait() override {
    return {.status = &(*statuses_)[size_t(rank())],
            .timeout_ns = std::chrono::nanoseconds(group().deadline()).count()};
  }

 private:
  void wait_for_peers(const char* operation, Stream) override { group().barrier(rank(), operation); }
  void copy(void* to, const void* from, int64_t num_bytes, Stream) override {
    std::memcpy(to, from, size_t(num_bytes));
  }
  void sum(const std::vector<const float*>& rows, View<float> out, Stream) override {
    for (int64_t i = 0; i < out.size(); ++i) {
      float total = rows[0][i];
      for (size_t r = 1; r < rows.size(); ++r) total = total + rows[r][i];
      out(i) = total;
    }
  }

  const std::shared_ptr<Statuses> statuses_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_communicators(int size, LocalGroupOptions options) {
  auto group = std::make_shared<LocalGroup>(size, options);
  auto statuses = std::make_shared<LocalCommunicator::Statuses>(size_t(size));
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<LocalCommunicator>(group, statuses, r));
  return all;
}

}  // namespace moectl
