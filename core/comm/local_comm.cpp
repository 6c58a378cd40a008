// Ranks as threads of one process whose memory the host addresses: data is copied straight out of the peers' memory.
#include <cstring>

#include "core/base/check.h"
#include "core/comm/local_group.h"

namespace moectl {
namespace {

class LocalCommunicator final : public PeerMemoryCommunicator {
 public:
  using PeerMemoryCommunicator::PeerMemoryCommunicator;
  bool capturable() const override { return size() == 1; }
  void abort(const std::string& reason) override { group().abort(reason); }
  void check() override { group().check(); }

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
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_communicators(int size, LocalGroupOptions options) {
  auto group = std::make_shared<LocalGroup>(size, options);
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<LocalCommunicator>(group, r));
  return all;
}

}  // namespace moectl
