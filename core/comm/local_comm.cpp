// Ranks as threads of one process: a barrier that parks and a table of pointers.
#include <condition_variable>
#include <mutex>

#include "core/base/error.h"
#include "core/comm/communicator.h"

namespace moectl {
namespace {

struct Group {
  explicit Group(int size) : slots(size) {}

  std::mutex mutex;
  std::condition_variable changed;
  int waiting = 0;
  uint64_t generation = 0;
  bool aborted = false;
  std::string reason;
  std::vector<const void*> slots;

  void check() const {
    if (aborted) throw Error(Code::kUnavailable, "a peer rank failed: " + reason);
  }

  void barrier() {
    std::unique_lock lock(mutex);
    check();
    if (++waiting == int(slots.size())) {
      waiting = 0;
      ++generation;
      changed.notify_all();
      return;
    }
    uint64_t mine = generation;
    changed.wait(lock, [&] { return aborted || generation != mine; });
    if (generation == mine) check();
  }
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return int(group_->slots.size()); }
  void barrier() override { group_->barrier(); }
  std::vector<const void*> all_gather(const void* mine) override {
    {
      std::lock_guard lock(group_->mutex);
      group_->check();
      group_->slots[size_t(rank_)] = mine;
    }
    barrier();
    std::vector<const void*> all;
    {
      std::lock_guard lock(group_->mutex);
      all = group_->slots;
    }
    barrier();  // nobody overwrites a slot before all have read
    return all;
  }
  void abort(const std::string& reason) override {
    std::lock_guard lock(group_->mutex);
    if (!group_->aborted) {
      group_->aborted = true;
      group_->reason = reason;
    }
    group_->changed.notify_all();
  }

 private:
  std::shared_ptr<Group> group_;
  const int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_communicators(int size) {
  auto group = std::make_shared<Group>(size);
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<LocalCommunicator>(group, r));
  return all;
}

}  // namespace moectl
