// Ranks as threads of one process whose memory the host addresses: data is copied straight out of the peers' memory.
#include <cstring>

#include "core/base/check.h"
#include "core/comm/local_group.h"

namespace moectl {
namespace {

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalGroup> group, int rank)
      : group_(std::move(group)), rank_(rank), buffers_(*group_, rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  bool capturable() const override { return size() == 1; }
  void abort(const std::string& reason) override { group_->abort(reason); }

  void check() override { group_->check(); }
  std::vector<std::byte*> register_buffer(void* data, int64_t num_bytes) override {
    return buffers_.add(data, num_bytes);
  }
  std::vector<int64_t> all_gather_host(int64_t value) override { return buffers_.gather(value, "all_gather_host"); }

  void barrier(Stream) override { group_->barrier(rank_, "barrier"); }

  void all_gather(const void* send, void* recv, int64_t num_bytes, Stream) override {
    std::vector<std::byte*> from = buffers_.peers_of(recv, size() * num_bytes);
    if (send == static_cast<std::byte*>(recv) + rank_ * num_bytes)
      for (int r = 0; r < size(); ++r) from[size_t(r)] += r * num_bytes;
    else
      from = buffers_.peers_of(send, num_bytes);
    group_->barrier(rank_, "all_gather");  // every rank's data is there
    for (int r = 0; r < size(); ++r) copy(static_cast<std::byte*>(recv) + r * num_bytes, from[size_t(r)], num_bytes);
    group_->barrier(rank_, "all_gather");  // every rank has read it
  }

  void all_to_all(const void* send, void* recv, int64_t num_bytes, Stream) override {
    const std::vector<std::byte*> from = buffers_.peers_of(send, size() * num_bytes);
    buffers_.peers_of(recv, size() * num_bytes);
    group_->barrier(rank_, "all_to_all");
    for (int r = 0; r < size(); ++r)
      copy(static_cast<std::byte*>(recv) + r * num_bytes, from[size_t(r)] + rank_ * num_bytes, num_bytes);
    group_->barrier(rank_, "all_to_all");
  }

  // Rank r sums slice r into its own copy, which no other rank touches meanwhile; then slices are gathered.
  void all_reduce(View<float> data, Stream) override {
    const std::vector<float*> of = buffers_.floats_of(data.data, data.size());
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
    const std::vector<float*> of = buffers_.floats_of(send.data, send.size());
    buffers_.peers_of(recv.data, n * int64_t(sizeof(float)));
    group_->barrier(rank_, "reduce_scatter");
    sum(of, rank_ * n, (rank_ + 1) * n, recv.data);
    group_->barrier(rank_, "reduce_scatter");
  }

 private:
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

  std::shared_ptr<LocalGroup> group_;
  const int rank_;
  RegisteredBuffers buffers_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_communicators(int size, LocalGroupOptions options) {
  auto group = std::make_shared<LocalGroup>(size, options);
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<LocalCommunicator>(group, r));
  return all;
}

}  // namespace moectl
