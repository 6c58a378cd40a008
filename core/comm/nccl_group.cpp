#include "core/comm/nccl_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kTicksPerTimeout = 300;                   // of the watching thread
constexpr std::chrono::seconds kStopTimeout{10};        // of the end of a group
constexpr int64_t kWarmUpBytes = 64;                    // per rank
constexpr std::chrono::microseconds kPollInterval{20};  // after kSpins
constexpr int kSpins = 1000;

double seconds(milliseconds t) {
  return std::chrono::duration<double>(t).count();
}

}  // namespace

NcclGroup::NcclGroup(const std::vector<Device*>& devices, const NcclOptions& options)
    : library_(options.library ? *options.library : NcclLibrary::get()),
      options_(options),
      host_(int(devices.size()), options.host) {
  for (Device* device : devices) {
    auto rank = std::make_unique<Rank>();
    rank->device = device;
    rank->status = device->alloc_host(sizeof(PeerStatus));
    rank->num_marks = device->alloc(sizeof(uint32_t));
    ranks_.push_back(std::move(rank));
  }
}

std::string NcclGroup::failure(const std::string& what, ncclResult_t result, ncclComm_t comm) const {
  const char* detail = comm ? nccl().get_last_error(comm) : nullptr;
  return fmt::format("NCCL {}: {}: {}{}{} (NCCL_DEBUG=INFO in the environment tells more)", library_.version(), what,
                     nccl().get_error_string(result), detail && *detail ? ", " : "", detail ? detail : "");
}

// ------------------------------------------------------------------------------------------------ start

void NcclGroup::start() {
  thread_ = std::thread([self = shared_from_this()] { self->watch(); });
  ncclUniqueId id;
  if (const ncclResult_t result = nccl().get_unique_id(&id); result != ncclSuccess)
    throw Error(Code::kBadConfig, failure("ncclGetUniqueId", result, nullptr));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  for (int r = 0; r < size(); ++r) {
    Rank& rank = *ranks_[size_t(r)];
    std::lock_guard lock(rank.mutex);
    ncclResult_t result = ncclInternalError;
    rank.device->peers()->launch("ncclCommInitRankConfig", rank.device->stream(), [&](Stream) {
      result = nccl().comm_init_rank_config(&rank.comm, size(), id, r, &config);
    });
    if (result != ncclSuccess && result != ncclInProgress)
      throw Error(Code::kBadConfig,
                  failure(fmt::format("rank {}: ncclCommInitRankConfig", host_.number_of(r)), result, rank.comm));
  }
  for (int r = 0; r < size(); ++r) wait_until_ready(r, "ncclCommInitRankConfig", options_.host.deadline);
  warm_up();
}

// One thread for all ranks: calls return before their peers have made them.
void NcclGroup::warm_up() {
  const NcclFunctions& f = nccl();
  std::vector<Buffer> buffers;
  for (auto& rank : ranks_) buffers.push_back(rank->device->alloc(2 * size() * kWarmUpBytes));
  const auto on_all = [&](PeerOperation::Kind kind, auto&& calls) {
    for (int r = 0; r < size(); ++r)
      begin(r, {kind}, device(r).stream(), [&](ncclComm_t comm, cudaStream_t stream) {
        std::byte* from = buffers[size_t(r)].get();
        return calls(from, from + size() * kWarmUpBytes, comm, stream);
      });
    for (int r = 0; r < size(); ++r) finish(r, {kind}, device(r).stream());
  };
  on_all(PeerOperation::kAllGather, [&](std::byte* from, std::byte* to, ncclComm_t comm, cudaStream_t stream) {
    return f.all_gather(from, to, size_t(kWarmUpBytes), ncclUint8, comm, stream);
  });
  on_all(PeerOperation::kAllToAll, [&](std::byte* from, std::byte* to, ncclComm_t comm, cudaStream_t stream) {
    ncclResult_t first = ncclSuccess;
    for (int p = 0; p < size(); ++p) {
      const ncclResult_t sent = f.send(from + p * kWarmUpBytes, size_t(kWarmUpBytes), ncclUint8, p, comm, stream),
                         received = f.recv(to + p * kWarmUpBytes, size_t(kWarmUpBytes), ncclUint8, p, comm, stream);
      for (const ncclResult_t result : {sent, received})
        if (first == ncclSuccess) first = result;
    }
    return first;
  });
  on_all(PeerOperation::kAllReduce, [&](std::byte* from, std::byte* to, ncclComm_t comm, cudaStream_t stream) {
    return f.all_reduce(from, to, 1, ncclFloat32, ncclSum, comm, stream);
  });
  on_all(PeerOperation::kReduceScatter, [&](std::byte* from, std::byte* to, ncclComm_t comm, cudaStream_t stream) {
    return f.reduce_scatter(from, to, 1, ncclFloat32, ncclSum, comm, stream);
  });
  for (auto& rank : ranks_) rank->device->synchronize(rank->device->stream());
  host_.check();
}

// ------------------------------------------------------------------------------------------------ collectives

void NcclGroup::issue(int rank, PeerOperation operation, Stream stream, const Calls& calls) {
  begin(rank, operation, stream, calls);
  finish(rank, operation, stream);
}

void NcclGroup::begin(int r, PeerOperation operation, Stream stream, const Calls& calls) {
  Rank& rank = *ranks_[size_t(r)];
  host_.check();
  mark(r, operation, stream);
  std::string failed;
  {
    std::lock_guard lock(rank.mutex);
    if (!rank.comm) return;  // finish() says why
    const NcclFunctions& f = nccl();
    rank.device->peers()->launch("a collective of NCCL", stream, [&](Stream s) {
      ncclResult_t result = f.group_start();
      if (result == ncclSuccess) {
        result = calls(rank.comm, static_cast<cudaStream_t>(s.handle));
        const ncclResult_t end = f.group_end();
        if (result == ncclSuccess || result == ncclInProgress) result = end;
      }
      if (result != ncclSuccess && result != ncclInProgress)
        failed = failure(fmt::format("rank {}: {}", host_.number_of(r), text_of(operation)), result, rank.comm);
    });
  }
  if (!failed.empty()) abort(failed);
}

void NcclGroup::finish(int r, PeerOperation operation, Stream stream) {
  wait_until_ready(r, text_of(operation).c_str(), options_.timeout);
  mark(r, operation, stream);
}

void NcclGroup::mark(int r, PeerOperation operation, Stream stream) {
  Rank& rank = *ranks_[size_t(r)];
  rank.device->peers()->mark(
      {.status = &status(r), .num_marks = reinterpret_cast<uint32_t*>(rank.num_marks.get()), .operation = operation},
      stream);
}

// Success, also of a group that has ended: LocalGroup::check tells then.
ncclResult_t NcclGroup::state_of(int r) {
  Rank& rank = *ranks_[size_t(r)];
  std::string failed;
  ncclResult_t state = ncclSuccess;
  {
    std::lock_guard lock(rank.mutex);
    if (!rank.comm) return ncclSuccess;
    const ncclResult_t result = nccl().comm_get_async_error(rank.comm, &state);
    if (result != ncclSuccess) state = result;
    if (state != ncclSuccess && state != ncclInProgress)
      failed = failure(fmt::format("rank {}", host_.number_of(r)), state, rank.comm);
  }
  if (!failed.empty()) abort(failed);
  return state;
}

void NcclGroup::wait_until_ready(int r, const char* what, milliseconds limit) {
  const Clock::time_point begin = Clock::now();
  for (int polls = 0; state_of(r) == ncclInProgress; ++polls) {
    host_.check();
    if (Clock::now() - begin > limit)
      abort(fmt::format("rank {} waited {:.3g} s until NCCL had begun {}", host_.number_of(r), seconds(limit), what));
    if (polls < kSpins)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(kPollInterval);
  }
  host_.check();
}

void NcclGroup::check(int r) {
  state_of(r);
  host_.check();
}

// ------------------------------------------------------------------------------------------------ end

void NcclGroup::abort(const std::string& reason) {
  host_.abort(reason);
  for (int r = 0; r < size(); ++r) std::atomic_ref(status(r).aborted).store(1);
  {
    std::lock_guard lock(mutex_);
    abort_ = true;
  }
  changed_.notify_all();
}

void NcclGroup::watch() {
  const auto tick = std::max(milliseconds(1), options_.timeout / kTicksPerTimeout);
  std::unique_lock lock(mutex_);
  while (!abort_ && !stop_) {
    if (changed_.wait_for(lock, tick, [&] { return abort_ || stop_; })) break;
    lock.unlock();
    for (int r = 0; r < size(); ++r) look_at(r);
    lock.lock();
  }
  const bool aborted = abort_;
  lock.unlock();
  const std::vector<ncclComm_t> comms = take_communicators();
  // ncclCommAbort ends the kernels of its rank at once; that of the last rank then frees all, and waits for graphs that
  // were captured with them to be freed.
  if (aborted || !finalize(comms))
    for (ncclComm_t comm : comms) nccl().comm_abort(comm);
  lock.lock();
  ended_ = true;
  changed_.notify_all();
}

// Ticks are counted, not time: one that a stopped process slept through counts once.
void NcclGroup::look_at(int r) {
  Rank& rank = *ranks_[size_t(r)];
  const auto marks_of = [&](int other) { return std::atomic_ref(status(other).marks).load(); };
  state_of(r);
  const uint32_t marks = marks_of(r);
  const bool waits = marks % 2 == 1 && marks == rank.marks;
  rank.num_ticks = waits ? rank.num_ticks + 1 : 0;
  rank.marks = marks;
  if (rank.num_ticks < kTicksPerTimeout) return;
  std::vector<int> missing;
  for (int other = 0; other < size(); ++other)
    if (int32_t(marks_of(other) - marks) < 0) missing.push_back(host_.number_of(other));
  const auto operation = PeerOperation::of_code(std::atomic_ref(status(r).at).load());
  abort(fmt::format(
      "rank {} waited {:.3g} s on its GPU in {} over NCCL for {}", host_.number_of(r), seconds(options_.timeout),
      text_of(operation),
      missing.empty() ? "data, though every rank is in it" : fmt::format("rank {}", fmt::join(missing, ", "))));
}

std::vector<ncclComm_t> NcclGroup::take_communicators() {
  std::vector<ncclComm_t> comms;
  for (auto& rank : ranks_) {
    std::lock_guard lock(rank->mutex);
    if (ncclComm_t comm = std::exchange(rank->comm, nullptr)) comms.push_back(comm);
  }
  return comms;
}

// Waits until what is in the streams is done. False: it did not end.
bool NcclGroup::finalize(const std::vector<ncclComm_t>& comms) {
  for (ncclComm_t comm : comms)
    if (const ncclResult_t r = nccl().comm_finalize(comm); r != ncclSuccess && r != ncclInProgress) return false;
  const Clock::time_point begin = Clock::now();
  for (ncclComm_t comm : comms)
    for (ncclResult_t state = ncclInProgress; state == ncclInProgress;) {
      if (nccl().comm_get_async_error(comm, &state) != ncclSuccess) return false;
      if (state != ncclSuccess && state != ncclInProgress) return false;
      if (Clock::now() - begin > kStopTimeout / 2) return false;
      if (state == ncclInProgress) std::this_thread::sleep_for(kPollInterval);
    }
  for (ncclComm_t comm : comms) nccl().comm_destroy(comm);
  return true;
}

void NcclGroup::stop() {
  std::unique_lock lock(mutex_);
  stop_ = true;
  changed_.notify_all();
  if (!thread_.joinable()) return;
  const bool ended = changed_.wait_for(lock, kStopTimeout, [&] { return ended_; });
  lock.unlock();
  if (ended) return thread_.join();
  log::warn("NCCL's communicators did not end within {} s and are left to the end of the process",
            kStopTimeout.count());
  thread_.detach();  // it owns the group
}

}  // namespace moectl
