#include "core/http/spawn.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <thread>

#include "core/base/log.h"

namespace moectl::http {
namespace {

namespace asio = boost::asio;

auto logged(const char* name) {
  return [name](std::exception_ptr error) {
    if (!error) return;
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& e) {
      log::error("{} ended: {}", name, e.what());
    } catch (...) {
      log::error("{} ended by an exception that is no std::exception", name);
    }
  };
}

}  // namespace

Task<void> spawn(const char* name, Task<void> task) {
  asio::any_io_executor executor = co_await asio::this_coro::executor;
  asio::co_spawn(executor, std::move(task), logged(name));
}

Task<void> run_all(std::vector<Task<void>> tasks) {
  asio::any_io_executor executor = co_await asio::this_coro::executor;
  AsyncQueue<std::exception_ptr> ended;
  const size_t count = tasks.size();
  for (Task<void>& task : tasks)
    asio::co_spawn(executor, std::move(task), [ended](std::exception_ptr error) mutable { ended.push(error); });
  std::exception_ptr first;
  for (size_t i = 0; i < count; ++i) {
    std::optional<std::exception_ptr> error = co_await ended.pop();
    if (error && *error && !first) first = *error;
  }
  if (first) std::rethrow_exception(first);
}

struct IoThread::Impl {
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  std::thread thread;
};

IoThread::IoThread() : impl_(std::make_unique<Impl>()) {
  impl_->thread = std::thread([io = &impl_->io] {
    for (;;) {
      try {
        io->run();
        return;
      } catch (const std::exception& e) {
        log::error("an I/O callback failed: {}", e.what());
      }
    }
  });
}

IoThread::~IoThread() {
  stop();
}

void IoThread::spawn(const char* name, Task<void> task) {
  asio::co_spawn(impl_->io, std::move(task), logged(name));
}

void IoThread::stop() {
  if (!impl_) return;
  impl_->io.stop();
  if (impl_->thread.joinable()) impl_->thread.join();
  impl_.reset();
}

}  // namespace moectl::http
