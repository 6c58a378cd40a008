// Turns between clients: who is admitted next, what one client can hold, and that nothing stays behind whatever becomes
// of a request.
#include "core/serving/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/base/error.h"

namespace moectl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr AdmissionLimits kSmall{.num_places = 8, .num_lookahead = 1, .max_waiting = 40, .max_waiting_per_client = 20};

// A request of `client`; `admitted` lists the clients in the order of their admissions.
struct Request {
  Request(Admission& admission, const std::string& client, int64_t num_choices, std::vector<std::string>& admitted)
      : ticket(admission.enter(client, num_choices, 10 * num_choices,
                               [&admitted, client] { admitted.push_back(client); })) {
    for (int64_t i = 0; i < ticket->num_admitted_at_once(); ++i) admitted.push_back(client);
  }
  std::unique_ptr<Admission::Ticket> ticket;
};

void expect_empty(const Admission& admission) {
  const Admission::Stats stats = admission.stats();
  EXPECT_EQ(stats.num_admitted, 0);
  EXPECT_EQ(stats.num_waiting, 0);
  EXPECT_EQ(stats.num_tokens_waiting, 0);
  EXPECT_EQ(stats.num_clients, 0);
}

TEST(Admission, OneClientLeavesPlacesForOthers) {
  Admission admission(kSmall);
  std::vector<std::string> admitted;
  Request a(admission, "a", 20, admitted);
  EXPECT_EQ(a.ticket->num_admitted_at_once(), 7);
  EXPECT_EQ(admission.stats().num_waiting, 13);
  EXPECT_EQ(admission.stats().num_tokens_waiting, 130);
  Request b(admission, "b", 1, admitted);
  EXPECT_EQ(b.ticket->num_admitted_at_once(), 1);
  Request c(admission, "c", 1, admitted);  // ahead of need
  EXPECT_EQ(c.ticket->num_admitted_at_once(), 1);
  Request d(admission, "d", 1, admitted);
  EXPECT_EQ(d.ticket->num_admitted_at_once(), 0);
  EXPECT_EQ(admission.stats().num_admitted, 9);
}

TEST(Admission, ASecondClientLeavesPlacesToo) {
  Admission admission(engine_admission(64));
  std::vector<std::string> admitted;
  Request a(admission, "a", 128, admitted), b(admission, "b", 128, admitted), c(admission, "c", 1, admitted);
  EXPECT_EQ(a.ticket->num_admitted_at_once(), 56);
  EXPECT_EQ(b.ticket->num_admitted_at_once(), 7);
  EXPECT_EQ(c.ticket->num_admitted_at_once(), 1);
}

TEST(Admission, FewPlacesAreUsedUp) {
  for (int num_seqs = 1; num_seqs <= 4; ++num_seqs) {
    Admission admission(engine_admission(num_seqs));
    std::vector<std::string> admitted;
    std::vector<std::unique_ptr<Request>> requests;
    for (int i = 0; i < 8; ++i)
      requests.push_back(std::make_unique<Request>(admission, std::to_string(i), 3, admitted));
    EXPECT_EQ(admission.stats().num_admitted, num_seqs + 1) << num_seqs;
  }
}

TEST(Admission, ClientsTakeTurnsAndRequestsOfOneKeepTheirOrder) {
  Admission admission(engine_admission(64));
  std::vector<std::string> admitted;
  std::vector<std::unique_ptr<Request>> running;  // all places, one client each
  for (int i = 0; i < 68; ++i) running.push_back(std::make_unique<Request>(admission, std::to_string(i), 1, admitted));
  ASSERT_EQ(admission.stats().num_admitted, 68);
  std::vector<std::string> order;
  auto note = [&order](std::string name) { return [&order, name] { order.push_back(name); }; };
  const auto a1 = admission.enter("a", 2, 0, note("a1"));
  const auto a2 = admission.enter("a", 1, 0, note("a2"));
  const auto b = admission.enter("b", 3, 0, note("b"));
  const auto c = admission.enter("c", 1, 0, note("c"));
  for (auto& request : running) request.reset();
  EXPECT_THAT(order, ElementsAre("a1", "b", "c", "a1", "b", "a2", "b"));
}

TEST(Admission, OneClientCannotFillTheQueue) {
  Admission admission(kSmall);
  std::vector<std::string> admitted;
  std::vector<std::unique_ptr<Request>> requests;
  const auto refusal = [&](const std::string& client, int64_t num_choices) -> std::string {
    try {
      requests.push_back(std::make_unique<Request>(admission, client, num_choices, admitted));
      return "";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kResourceExhausted);
      return e.what();
    }
  };
  EXPECT_EQ(refusal("a", 27), "");  // 7 of them are admitted
  EXPECT_THAT(refusal("a", 1), HasSubstr("your requests"));
  EXPECT_THROW(admission.check("a", 1), Error);
  EXPECT_NO_THROW(admission.check("b", 1));
  EXPECT_EQ(refusal("b", 21), "");
  EXPECT_THAT(refusal("c", 2), HasSubstr("Too many requests"));
  EXPECT_EQ(refusal("c", 1), "");
  requests.clear();
  expect_empty(admission);
}

TEST(Admission, WhateverEndsGivesItsPlacesBack) {
  Admission admission(kSmall);
  std::vector<std::string> admitted;
  {
    Request running(admission, "a", 7, admitted);
    Request rest(admission, "b", 5, admitted);
    {
      Request waiting(admission, "c", 4, admitted), behind(admission, "d", 1, admitted);
      EXPECT_EQ(waiting.ticket->num_admitted_at_once(), 1);
      admitted.clear();
      running.ticket.reset();  // with all its choices
      EXPECT_THAT(admitted, ElementsAre("b", "c", "d", "b", "c", "b"));
    }
    EXPECT_EQ(admission.stats().num_clients, 1);
  }
  expect_empty(admission);
}

// Threads that enter, finish and leave in any order: the counts return to zero, nobody waits while there is room.
TEST(Admission, CountsReturnToZeroUnderThreads) {
  Admission admission(engine_admission(8));
  std::atomic<int64_t> num_admitted{0};
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < 300; ++i) {
      std::atomic<int64_t> mine{0};
      const int64_t num_choices = 1 + int64_t(random() % 12);
      std::unique_ptr<Admission::Ticket> ticket;
      try {
        ticket = admission.enter(std::to_string(random() % 5), num_choices, 7, [&mine] { ++mine; });
      } catch (const Error&) {
        continue;
      }
      mine += ticket->num_admitted_at_once();
      int64_t finished = 0;
      const bool leaves = random() % 3 == 0;
      while (finished < num_choices && !(leaves && finished == num_choices / 2)) {
        if (mine.load() > finished) {
          ticket->finish_one();
          ++finished;
        } else {
          std::this_thread::yield();
        }
      }
      ticket.reset();
      num_admitted += mine;
    }
  };
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) threads.emplace_back(work, t);
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(num_admitted, 0);
  expect_empty(admission);
}

TEST(Admission, LargeJobsRunOneAtATime) {
  Admission lane(large_job_admission());
  std::vector<std::string> admitted;
  auto a = std::make_unique<Request>(lane, "a", 1, admitted);
  Request a2(lane, "a", 1, admitted), a3(lane, "a", 1, admitted), b(lane, "b", 1, admitted);
  EXPECT_THAT(admitted, ElementsAre("a"));
  a.reset();
  EXPECT_THAT(admitted, ElementsAre("a", "a"));
  a2.ticket.reset();
  EXPECT_THAT(admitted, ElementsAre("a", "a", "b"));
  b.ticket.reset();
  a3.ticket.reset();
  expect_empty(lane);
}

}  // namespace
}  // namespace moectl
