// A stand-in for libnccl.so.2, for tests of core/comm/nccl_*.cpp without a GPU: ranks are threads, buffers host memory.
// As a non-blocking communicator of the real one, a call returns ncclInProgress; it is done, for every rank, when the
// last rank has made it, and ncclCommGetAsyncError tells. An abort frees a communicator at once, so a later use of it
// is found by AddressSanitizer.
//
// MOECTL_STAND_IN_VERSION is the version that it says it is; MOECTL_STAND_IN_LACKS_SEND leaves ncclSend out.
#include <nccl.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Call {
  enum Kind { kAllGather, kAllReduce, kReduceScatter, kSend, kRecv } kind;
  const void* send;
  void* recv;
  size_t count, bytes;  // count: of floats of a sum; bytes: of what else moves
  int peer;
};

struct Group {  // of one unique id
  std::mutex mutex;
  std::vector<ncclComm*> ranks;
};

}  // namespace

struct ncclComm {
  std::shared_ptr<Group> group;
  int rank = 0;
  bool joined = false, pending = false;
  std::vector<Call> calls;  // of the ncclGroup that is in progress
  ncclResult_t state = ncclInProgress;
  std::string error;
};

namespace {

std::mutex groups_mutex;
std::map<std::string, std::shared_ptr<Group>> groups;
thread_local int depth = 0;
thread_local ncclComm* grouped = nullptr;

bool all(const Group& group, bool ncclComm::*flag) {
  for (const ncclComm* c : group.ranks)
    if (!c || !(c->*flag)) return false;
  return true;
}

// Sums are added from the last rank to the first, unlike anything in rank order.
void reduce(const Group& group, size_t at, size_t offset, float* out) {
  const Call& mine = group.ranks[0]->calls[at];
  std::vector<float> sum(mine.count);
  for (size_t r = group.ranks.size(); r-- > 0;)
    for (size_t i = 0; i < mine.count; ++i)
      sum[i] += static_cast<const float*>(group.ranks[r]->calls[at].send)[offset + i];
  std::memcpy(out, sum.data(), sum.size() * sizeof(float));
}

// The calls of all ranks of one ncclGroup. Sources are copied first, so that in-place calls work.
bool run(Group& group) {
  const size_t size = group.ranks.size();
  struct Move {
    std::vector<char> data;
    void* to;
  };
  std::vector<Move> moves;
  const auto move = [&](const void* from, size_t bytes, void* to) {
    const char* p = static_cast<const char*>(from);
    moves.push_back({{p, p + bytes}, to});
  };
  for (size_t r = 0; r < size; ++r) {
    ncclComm& to = *group.ranks[r];
    std::map<int, size_t> received;  // of each peer
    for (size_t at = 0; at < to.calls.size(); ++at) {
      const Call& call = to.calls[at];
      if (call.kind == Call::kAllGather)
        for (size_t p = 0; p < size; ++p)
          move(group.ranks[p]->calls[at].send, call.bytes, static_cast<char*>(call.recv) + p * call.bytes);
      if (call.kind == Call::kAllReduce || call.kind == Call::kReduceScatter) {
        std::vector<float> sum(call.count);
        reduce(group, at, call.kind == Call::kReduceScatter ? r * call.count : 0, sum.data());
        move(sum.data(), sum.size() * sizeof(float), call.recv);
      }
      if (call.kind == Call::kRecv) {
        size_t nth = received[call.peer]++;
        const Call* found = nullptr;
        for (const Call& sent : group.ranks[size_t(call.peer)]->calls)
          if (sent.kind == Call::kSend && sent.peer == int(r) && nth-- == 0) found = &sent;
        if (!found || found->bytes != call.bytes) return false;
        move(found->send, call.bytes, call.recv);
      }
    }
  }
  for (const Move& m : moves) std::memcpy(m.to, m.data.data(), m.data.size());
  return true;
}

void submit(ncclComm* comm) {
  Group& group = *comm->group;
  std::lock_guard lock(group.mutex);
  comm->state = ncclInProgress;
  comm->pending = true;
  if (!all(group, &ncclComm::pending)) return;
  const bool ok = run(group);
  for (ncclComm* c : group.ranks) {
    c->calls.clear();
    c->pending = false;
    c->state = ok ? ncclSuccess : ncclInvalidUsage;
    if (!ok) c->error = "a receive without its send";
  }
}

ncclResult_t add(ncclComm* comm, const Call& call) {
  if (comm->state == ncclInProgress && comm->calls.empty()) return ncclInvalidArgument;  // used before it was ready
  comm->calls.push_back(call);
  if (depth > 0)
    grouped = comm;
  else
    submit(comm);
  return depth > 0 ? ncclSuccess : ncclInProgress;
}

void leave(ncclComm* comm) {
  {
    std::lock_guard lock(comm->group->mutex);
    comm->group->ranks[size_t(comm->rank)] = nullptr;
  }
  delete comm;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = MOECTL_STAND_IN_VERSION;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int next = 0;
  std::lock_guard lock(groups_mutex);
  *id = {};
  const std::string name = "group " + std::to_string(next++);
  std::memcpy(id->internal, name.c_str(), name.size());
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (config->blocking != 0 || rank < 0 || rank >= size) return ncclInvalidArgument;
  std::shared_ptr<Group> group;
  {
    std::lock_guard lock(groups_mutex);
    std::shared_ptr<Group>& known = groups[id.internal];
    if (!known) known = std::make_shared<Group>();
    group = known;
  }
  auto* comm = new ncclComm{.group = group, .rank = rank};
  *out = comm;
  std::lock_guard lock(group->mutex);
  group->ranks.resize(size_t(size));
  group->ranks[size_t(rank)] = comm;
  comm->joined = true;
  if (all(*group, &ncclComm::joined))
    for (ncclComm* c : group->ranks) c->state = ncclSuccess;
  return ncclInProgress;
}
ncclResult_t ncclCommFinalize(ncclComm_t) {
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  leave(comm);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  leave(comm);
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  std::lock_guard lock(comm->group->mutex);
  *state = comm->state;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclInvalidUsage ? "invalid usage" : result == ncclInvalidArgument ? "invalid argument" : "error";
}
const char* ncclGetLastError(ncclComm_t comm) {
  return comm->error.c_str();
}
ncclResult_t ncclGroupStart() {
  ++depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (--depth > 0 || !grouped) return ncclSuccess;
  submit(std::exchange(grouped, nullptr));
  return ncclInProgress;
}
ncclResult_t ncclAllGather(const void* send, void* recv, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t) {
  return add(comm, {Call::kAllGather, send, recv, 0, type == ncclUint8 ? count : count * 4, 0});
}
ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, ncclDataType_t, ncclRedOp_t, ncclComm_t comm,
                           cudaStream_t) {
  return add(comm, {Call::kAllReduce, send, recv, count, 0, 0});
}
ncclResult_t ncclReduceScatter(const void* send, void* recv, size_t count, ncclDataType_t, ncclRedOp_t, ncclComm_t comm,
                               cudaStream_t) {
  return add(comm, {Call::kReduceScatter, send, recv, count, 0, 0});
}
#if !defined(MOECTL_STAND_IN_LACKS_SEND)
ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t) {
  return add(comm, {Call::kSend, send, nullptr, 0, count, peer});
}
#endif
ncclResult_t ncclRecv(void* recv, size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t) {
  return add(comm, {Call::kRecv, nullptr, recv, 0, count, peer});
}

}  // extern "C"
