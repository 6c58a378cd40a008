// The asynchronous vocabulary of the servers: Task, AsyncQueue, sleep, hand-over to a CPU pool. Everything above
// core/http uses these names and never includes boost itself. Owns no thread: a coroutine runs on the executor it was
// spawned on.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
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
#include <type_traits>
#include <utility>
#include <variant>

namespace moectl {

template <class T = void>
using Task = boost::asio::awaitable<T>;
using CpuPool = boost::asio::thread_pool;
using Clock = std::chrono::steady_clock;

using Executor = boost::asio::any_io_executor;
inline Task<Executor> this_executor() {
  co_return co_await boost::asio::this_coro::executor;
}
// Runs `f` there, later; from any thread.
template <class F>
void post_to(const Executor& executor, F f) {
  boost::asio::post(executor, std::move(f));
}

inline Task<void> sleep_for(Clock::duration d) {
  boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, d);
  co_await timer.async_wait(boost::asio::use_awaitable);
}

// Runs `f` on the pool (work that would stall the I/O thread) and resumes the coroutine where it was, with the result
// or the exception of `f`. The pool must live, unstopped, until the server whose handlers use it has stopped.
template <class F, class R = std::invoke_result_t<F&>>
Task<R> run_on(CpuPool& pool, F f) {
  using Value = std::conditional_t<std::is_void_v<R>, std::monostate, R>;
  boost::asio::any_io_executor home = co_await boost::asio::this_coro::executor;
  std::optional<Value> value;
  std::exception_ptr error;
  co_await boost::asio::post(boost::asio::bind_executor(pool.get_executor(), boost::asio::use_awaitable));
  try {
    if constexpr (std::is_void_v<R>) {
      f();
    } else {
      value.emplace(f());
    }
  } catch (...) {
    error = std::current_exception();
  }
  co_await boost::asio::post(boost::asio::bind_executor(home, boost::asio::use_awaitable));
  if (error) std::rethrow_exception(error);
  if constexpr (!std::is_void_v<R>) co_return std::move(*value);
}

// A queue from any thread (the engine) to one coroutine (a response). push never blocks; the consumer is woken on its
// own executor. Bounded by its producer: an answer is never longer than its max_tokens. Between two pops the channel
// holds nothing of the I/O side, so a producer may keep it (by shared_ptr) longer than the server lives.
template <class T>
class AsyncQueue {
 public:
  AsyncQueue() = default;
  explicit AsyncQueue(const boost::asio::any_io_executor&) {
  }  // the executor is the popping coroutine's; none is needed

  void push(T value) {
    std::lock_guard lock(state_->mutex);
    if (state_->closed) return;
    state_->queue.push_back(std::move(value));
    wake(*state_);
  }
  // Later pushes are dropped; pop drains what is there and then returns nullopt.
  void close() {
    std::lock_guard lock(state_->mutex);
    state_->closed = true;
    wake(*state_);
  }
  // The next value; nullopt when the channel is closed and empty, or when `timeout` passed first (see timed_out()).
  // One coroutine pops; it must run on a strand or on a single-threaded executor.
  Task<std::optional<T>> pop(Clock::duration timeout = Clock::duration::max()) {
    std::shared_ptr<State> state = state_;
    timed_out_ = false;
    if (std::optional<std::optional<T>> ready = try_take(*state)) co_return std::move(*ready);
    Clock::time_point deadline = timeout == Clock::duration::max() ? Clock::time_point::max() : Clock::now() + timeout;
    boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, deadline);
    for (;;) {
      Waiting waiting(state, timer);
      // A push after this look finds the registered timer, and its cancel is posted behind this coroutine's suspension.
      if (std::optional<std::optional<T>> ready = try_take(*state)) co_return std::move(*ready);
      boost::system::error_code ec;
      co_await timer.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ec));
      if (std::optional<std::optional<T>> ready = try_take(*state)) co_return std::move(*ready);
      if (!ec) {
        timed_out_ = true;
        co_return std::nullopt;
      }
    }
  }
  bool timed_out() const { return timed_out_; }  // of the last pop; for the consumer only

 private:
  struct State : std::enable_shared_from_this<State> {
    std::mutex mutex;
    std::deque<T> queue;
    bool closed = false;
    // The timer that the consumer waits on, while it waits. Touched only on its own executor (it is not thread-safe).
    boost::asio::steady_timer* waiter = nullptr;
    bool wake_posted = false;
  };
  // Registers the consumer's timer; takes it back also when the coroutine is destroyed while it waits.
  struct Waiting {
    Waiting(std::shared_ptr<State> s, boost::asio::steady_timer& timer) : state(std::move(s)) {
      std::lock_guard lock(state->mutex);
      state->waiter = &timer;
      state->wake_posted = false;
    }
    ~Waiting() {
      std::lock_guard lock(state->mutex);
      state->waiter = nullptr;
    }
    Waiting(const Waiting&) = delete;
    std::shared_ptr<State> state;
  };

  // Outer nullopt: nothing yet. Inner nullopt: closed and empty.
  static std::optional<std::optional<T>> try_take(State& state) {
    std::lock_guard lock(state.mutex);
    if (!state.queue.empty()) {
      std::optional<T> value(std::move(state.queue.front()));
      state.queue.pop_front();
      return std::optional<std::optional<T>>(std::move(value));
    }
    if (state.closed) return std::optional<std::optional<T>>(std::in_place, std::nullopt);
    return std::nullopt;
  }
  // Under the mutex, so that no post can follow the end of the wait (and of the I/O side).
  static void wake(State& state) {
    if (!state.waiter || state.wake_posted) return;
    state.wake_posted = true;
    boost::asio::post(state.waiter->get_executor(), [alive = state.shared_from_this()] {
      std::lock_guard lock(alive->mutex);
      if (alive->waiter) alive->waiter->cancel();
    });
  }

  std::shared_ptr<State> state_ = std::make_shared<State>();
  bool timed_out_ = false;
};

}  // namespace moectl
