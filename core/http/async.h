// The asynchronous vocabulary of the servers: Task, Channel, sleep, hand-over to a worker pool. Everything above core/http
// uses these names and never includes boost itself.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <variant>

namespace moectl {

template <class T = void>
using Task = boost::asio::awaitable<T>;
using WorkerPool = boost::asio::thread_pool;
using Clock = std::chrono::steady_clock;

inline Task<void> sleep_for(Clock::duration d) {
  boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, d);
  co_await timer.async_wait(boost::asio::use_awaitable);
}

// Runs `f` on the pool (work that would stall the I/O thread) and resumes the coroutine where it was with the result.
template <class F, class R = std::invoke_result_t<F&>>
Task<R> run_on(WorkerPool& pool, F f) {
  auto home = co_await boost::asio::this_coro::executor;
  std::variant<std::monostate, R, std::exception_ptr> result;
  co_await boost::asio::post(boost::asio::bind_executor(pool, boost::asio::use_awaitable));
  try {
    result.template emplace<1>(f());
  } catch (...) {
    result.template emplace<2>(std::current_exception());
  }
  co_await boost::asio::post(boost::asio::bind_executor(home, boost::asio::use_awaitable));
  if (result.index() == 2) std::rethrow_exception(std::get<2>(result));
  co_return std::move(std::get<1>(result));
}

// A queue from any thread (the engine) to one coroutine (a response). push never blocks; the consumer is woken on its own
// executor. Bounded by its producer: an answer is never longer than its max_tokens.
template <class T>
class Channel {
 public:
  explicit Channel(boost::asio::any_io_executor executor) : timer_(executor) {
    timer_.expires_at(Clock::time_point::max());
  }

  void push(T value) {
    {
      std::lock_guard lock(mutex_);
      if (closed_) return;
      queue_.push_back(std::move(value));
    }
    wake();
  }
  // Later pushes are dropped; pop drains what is there and then returns nullopt.
  void close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    wake();
  }
  // The next value; nullopt when the channel is closed and empty, or when `timeout` passed first (see timed_out()).
  Task<std::optional<T>> pop(Clock::duration timeout = Clock::duration::max()) {
    auto deadline = timeout == Clock::duration::max() ? Clock::time_point::max() : Clock::now() + timeout;
    for (;;) {
      {
        std::lock_guard lock(mutex_);
        timed_out_ = false;
        if (!queue_.empty()) {
          T value = std::move(queue_.front());
          queue_.pop_front();
          co_return std::move(value);
        }
        if (closed_) co_return std::nullopt;
        waiting_ = true;
      }
      timer_.expires_at(deadline);
      {
        // A push between the check above and expires_at would have found no timer to cancel: look again.
        std::lock_guard lock(mutex_);
        if (!queue_.empty() || closed_) {
          waiting_ = false;
          continue;
        }
      }
      boost::system::error_code ec;
      co_await timer_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ec));
      if (!ec) {
        std::lock_guard lock(mutex_);
        waiting_ = false;
        if (queue_.empty() && !closed_) {
          timed_out_ = true;
          co_return std::nullopt;
        }
      }
    }
  }
  bool timed_out() const { return timed_out_; }

 private:
  void wake() {
    // steady_timer is not thread-safe: cancel it from its own executor.
    boost::asio::post(timer_.get_executor(), [this, alive = std::weak_ptr<char>(alive_)] {
      if (alive.lock()) timer_.cancel();
    });
  }

  std::mutex mutex_;
  std::deque<T> queue_;
  bool closed_ = false, waiting_ = false, timed_out_ = false;
  boost::asio::steady_timer timer_;
  std::shared_ptr<char> alive_ = std::make_shared<char>(0);
};

}  // namespace moectl
