// moectl with ranks on devices that execute by themselves (tests/harness/stream_ops.h), for
// tests/e2e/rank_fault_test.py: the same commands and flags, and what GPUs do to a server, on any machine. The last
// rank breaks when a file appears.
//
//   FAULT_TRIGGER   path of the file, whose first word says what happens from then on:
//     hang          its device executes nothing and does not end, as with a kernel that never ends
//     drop          its device executes nothing, and says that it has: the rank stops inside dispatch
//     lost          its device fails
//     throw         an operation that the rank issues fails
//     block         an operation that the rank issues never returns, as a call that hangs in a driver
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <future>
#include <optional>
#include <string>

#include "cmd/flags/flags.h"
#include "core/base/log.h"
#include "kernels/ops.h"
#include "tests/harness/stream_ops.h"

namespace moectl::test {
namespace {

// Any thread.
class Fault {
 public:
  explicit Fault(std::string trigger) : trigger_(std::move(trigger)) {}
  // Whether `kind` has been triggered.
  bool is(const char* kind) {
    if (!over_) {
      std::ifstream file(trigger_);
      std::string word;
      if (!(file >> word)) return false;
      std::lock_guard lock(mutex_);
      if (!over_) kind_ = word;
      over_ = true;
    }
    return kind_ == kind;
  }
  [[noreturn]] static void hang() {
    for (;;) ::pause();
  }

 private:
  const std::string trigger_;
  std::mutex mutex_;
  std::atomic<bool> over_{false};
  std::string kind_;
};

std::unique_ptr<Ops> make_stream_ops(std::unique_ptr<Ops> backend, int rank, int num_ranks, Fault& fault) {
  const std::optional<int> ordinal = num_ranks > 1 ? std::optional(rank) : std::nullopt;
  if (rank != num_ranks - 1) return std::make_unique<StreamOps>(std::move(backend), StreamOps::Hooks{}, ordinal);
  const auto self = std::make_shared<StreamOps*>();
  StreamOps::Hooks hooks;
  hooks.before = [&fault, self](int64_t) {
    if (fault.is("hang")) Fault::hang();
    if (fault.is("drop")) (*self)->drop_operations();
    if (fault.is("lost")) throw Error(Code::kUnavailable, "the device fell off the bus");
  };
  hooks.issue = [&fault] {
    if (fault.is("throw")) throw Error(Code::kUnavailable, "the launch was refused");
    if (fault.is("block")) Fault::hang();
  };
  auto ops = std::make_unique<StreamOps>(std::move(backend), std::move(hooks), ordinal);
  *self = ops.get();
  return ops;
}

int run(const std::vector<std::string>& args) {
  Invocation invocation = parse_command_line(args, {});
  if (!invocation.command) throw Error(Code::kUsage, "a command that serves is needed");
  const char* trigger = std::getenv("FAULT_TRIGGER");
  static Fault& fault = *new Fault(trigger ? trigger : "");  // threads may use it as long as the process lives
  EngineConfig& engine = invocation.options.engine;
  engine.wrap_ops = [num_ranks = engine.parallelism.world_size()](std::unique_ptr<Ops> backend, int rank) {
    return make_stream_ops(std::move(backend), rank, num_ranks, fault);
  };
  log::init(log::Format::kText, log::Level::kInfo, false);
  return invocation.command->run(invocation.options);
}

}  // namespace
}  // namespace moectl::test

int main(int argc, char** argv) {
  try {
    return moectl::test::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stream_server: %s\n", error.what());
    return 1;
  }
}
