#include "core/comm/link_measurement.h"

namespace moectl {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
// Far beyond caches; by one block of a GPU a sixteenth.
constexpr int64_t kLinkBytes = 256 * kMiB, kLinkBytesOnCpu = 32 * kMiB;
constexpr int kLinkRepetitions = 6;
constexpr int kRoundTrips = 1000, kRoundTripsOnCpu = 100;

int64_t link_bytes(bool on_gpu) {
  return on_gpu ? kLinkBytes : kLinkBytesOnCpu;
}

}  // namespace

int64_t LinkMeasurement::device_bytes(bool on_gpu) {
  return 2 * link_bytes(on_gpu);
}

LinkMeasurement::LinkMeasurement(Device& device, Communicator& comm, LinkBench& link, StreamTimer& timer,
                                 std::vector<int> ordinals, bool on_gpu)
    : device_(device),
      comm_(comm),
      link_(link),
      timer_(timer),
      ordinals_(std::move(ordinals)),
      on_gpu_(on_gpu),
      num_bytes_(link_bytes(on_gpu)),
      send_(device.alloc(num_bytes_)),
      receive_(device.alloc(num_bytes_)),
      flag_(device.alloc(sizeof(uint32_t))) {}

void LinkMeasurement::run() {
  const std::vector<std::byte*> send = comm_.register_buffer(send_.get(), num_bytes_),
                                receive = comm_.register_buffer(receive_.get(), num_bytes_),
                                flags = comm_.register_buffer(flag_.get(), sizeof(uint32_t));
  measure_copies(send, receive);
  measure_flag(flags);
}

// Every rank to or from the next one, all at once.
void LinkMeasurement::measure_copies(const std::vector<std::byte*>& send, const std::vector<std::byte*>& receive) {
  const int rank = comm_.rank();
  const auto next = size_t((rank + 1) % comm_.size());
  const LinkCopyArgs store = {
      .to = receive[next], .from = send_.get(), .to_ordinal = ordinals_[next], .from_ordinal = ordinals_[size_t(rank)]};
  const LinkCopyArgs load = {
      .to = receive_.get(), .from = send[next], .to_ordinal = ordinals_[size_t(rank)], .from_ordinal = ordinals_[next]};
  const auto measure = [&](const char* transfer, LinkCopyArgs args, int num_blocks) {
    args.num_blocks = num_blocks;
    args.num_bytes = num_bytes_ / (on_gpu_ && num_blocks == 1 ? 16 : 1);
    link_.copy(args, stream());  // what a first copy sets up must not wait for a peer in a barrier
    timer_.wait_for_all();
    for (int i = 0; i < kLinkRepetitions; ++i) timer_.timed([&] { link_.copy(args, stream()); });
    times_.push_back({.what = {.transfer = transfer, .num_blocks = num_blocks},
                      .num_bytes = args.num_bytes,
                      .seconds = timer_.take(1, 1, kLinkRepetitions).front()});
    timer_.wait_for_all();
  };
  for (const int num_blocks : link_.num_blocks()) measure("stores", store, num_blocks);
  for (const int num_blocks : link_.num_blocks()) measure("loads", load, num_blocks);
  if (link_.has_copy_engine()) measure("copy engine", store, 0);
}

// Between ranks 0 and 1; the others only take part in the barriers.
void LinkMeasurement::measure_flag(const std::vector<std::byte*>& flags) {
  const int rank = comm_.rank(), peer = 1 - rank;
  const int round_trips = on_gpu_ ? kRoundTrips : kRoundTripsOnCpu;
  for (int i = 0; i < kLinkRepetitions; ++i)
    timer_.timed([&] {
      if (rank > 1) return;
      link_.ping_pong({.mine = reinterpret_cast<uint32_t*>(flag_.get()),
                       .theirs = reinterpret_cast<uint32_t*>(flags[size_t(peer)]),
                       .before = uint32_t(i * round_trips),
                       .round_trips = round_trips,
                       .begins = rank == 0,
                       .peer = peer,
                       .wait = comm_.peer_wait()},
                      stream());
    });
  const Seconds seconds = timer_.take(1, 1, kLinkRepetitions).front();
  if (rank == 0)
    for (const double s : seconds) flag_seconds_.push_back(s / (2 * round_trips));
  timer_.wait_for_all();
}

}  // namespace moectl
