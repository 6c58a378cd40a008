#include "core/comm/stream_timer.h"

#include <algorithm>
#include <deque>
#include <thread>

#include "core/base/check.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxStamps = int64_t{1} << 18;
constexpr int64_t kLogBytes = (1 + kMaxStamps) * int64_t(sizeof(int64_t));
constexpr int kFewestIterations = 3;
constexpr int kRepetitionsPerGraph = 8;  // as the layers of a step follow each other
constexpr size_t kLaunchesInFlight = 2;  // as steps are
constexpr double kNanosecond = 1e-9;

View<int64_t> log_view(const Buffer& log) {
  return {reinterpret_cast<int64_t*>(log.get()), {1 + kMaxStamps}};
}

}  // namespace

StreamTimer::StreamTimer(Device& device, Communicator& comm, LinkBench& link, Options options)
    : device_(device),
      comm_(comm),
      link_(link),
      options_(options),
      log_(device.alloc(kLogBytes)),
      host_log_(device.alloc_host(kLogBytes)) {}

int64_t StreamTimer::num_bytes() {
  return kLogBytes;
}

void StreamTimer::timed(const std::function<void()>& operation) {
  const Stream stream = device_.stream();
  comm_.barrier(stream);
  link_.stamp(log_view(log_), stream);
  operation();
  link_.stamp(log_view(log_), stream);
}

std::vector<RankTimes> StreamTimer::measure(int num_operations, int num_timed, const Repetition& repetition) {
  const auto begin = Clock::now();
  repetition();
  device_.synchronize(device_.stream());
  const std::chrono::duration<double> seconds = Clock::now() - begin;
  comm_.check();
  take(num_operations, num_timed, 1);

  int iterations = run_back_to_back(repetition, agree_on_iterations(seconds.count(), num_timed));
  const std::vector<Seconds> back_to_back = take(num_operations, num_timed, iterations);
  const std::chrono::duration<double> pause = options_.pause;
  iterations = run_after_pauses(repetition, agree_on_iterations(seconds.count() + pause.count(), num_timed));
  const std::vector<Seconds> after_pause = take(num_operations, num_timed, iterations);
  wait_for_all();  // graphs are freed on every rank before a kernel of the next measurement waits for a peer

  std::vector<RankTimes> times;
  for (size_t i = 0; i < size_t(num_operations); ++i) times.push_back({back_to_back[i], after_pause[i]});
  return times;
}

std::vector<Seconds> StreamTimer::take(int num_operations, int num_timed, int iterations) {
  const int64_t num_stamps = 2 * int64_t{iterations} * num_timed;
  const Stream stream = device_.stream();
  device_.copy(host_log_.get(), log_.get(), (1 + num_stamps) * int64_t(sizeof(int64_t)), stream);
  device_.synchronize(stream);
  comm_.check();
  const int64_t none = 0;
  device_.upload(log_.get(), &none, sizeof none);
  const View<int64_t> log = log_view(host_log_);
  CHECK(log(0) == num_stamps, "{} stamps in the stream, not {}", log(0), num_stamps);
  std::vector<Seconds> seconds(size_t(num_operations), Seconds(size_t(iterations), 0.0));
  for (int64_t i = 0; i < num_stamps / 2; ++i)
    seconds[size_t(i % num_timed % num_operations)][size_t(i / num_timed)] +=
        double(log(2 + 2 * i) - log(1 + 2 * i)) * kNanosecond;
  return seconds;
}

void StreamTimer::wait_for_all() {
  device_.synchronize(device_.stream());
  comm_.check();
  comm_.all_gather_host(0);
}

// A graph of so many repetitions; where the device captures none, one repetition at a time.
StreamTimer::Launch StreamTimer::prepare(const Repetition& repetition, int repetitions) {
  GraphCapture* graphs = device_.graphs();
  if (!graphs || !comm_.capturable()) return {.run = repetition};
  const Graph graph = graphs->capture([&] {
    for (int i = 0; i < repetitions; ++i) repetition();
  });
  comm_.all_gather_host(0);  // what instantiating a graph waits for must not wait for a replay
  return {.run = [graphs, graph, this] { graphs->replay(graph, device_.stream()); }, .repetitions = repetitions};
}

// As many as fit the time on the slowest rank, and the log.
int StreamTimer::agree_on_iterations(double seconds_each, int num_timed) {
  const std::vector<int64_t> all = comm_.all_gather_host(int64_t(seconds_each / kNanosecond));
  const double slowest = double(std::max<int64_t>(std::ranges::max(all), 1)) * kNanosecond;
  const int64_t room = kMaxStamps / (2 * num_timed) - kRepetitionsPerGraph;
  CHECK(room >= kFewestIterations, "{} timed operations per repetition", num_timed);
  const auto fit = int64_t(std::min(options_.seconds / slowest, 1e9));
  return int(std::min({int64_t{options_.iterations}, std::max<int64_t>(fit, kFewestIterations), room}));
}

// Returns how many iterations ran.
int StreamTimer::run_back_to_back(const Repetition& repetition, int iterations) {
  const Launch launch = prepare(repetition, kRepetitionsPerGraph);
  const int num_launches = (iterations + launch.repetitions - 1) / launch.repetitions;
  std::deque<Event> in_flight;
  for (int i = 0; i < num_launches; ++i) {
    if (in_flight.size() == kLaunchesInFlight) {
      device_.wait(in_flight.front());
      in_flight.pop_front();
    }
    launch.run();
    in_flight.push_back(device_.record_event(device_.stream()));
  }
  wait_for_all();
  return num_launches * launch.repetitions;
}

int StreamTimer::run_after_pauses(const Repetition& repetition, int iterations) {
  const Launch launch = prepare(repetition, 1);
  for (int i = 0; i < iterations; ++i) {
    std::this_thread::sleep_for(options_.pause);
    comm_.all_gather_host(0);  // ranks begin together
    launch.run();
    device_.synchronize(device_.stream());
    comm_.check();
  }
  wait_for_all();
  return iterations;
}

}  // namespace moectl
