// The table of attribution: what follows from each way in which an attempt can end.
#include "router/verdict.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace moectl::router {
namespace {

Verdict of_error(const api::ApiError& error) {
  return judge({.end = AttemptEnd::kErrorAnswer, .error = error});
}

TEST(Verdict, ARequestsOwnErrorIsNeverRetried) {
  for (const int status : {400, 401, 404, 413, 415, 422, 504}) {
    const Verdict verdict = of_error(api::from_status(status, "x"));
    EXPECT_EQ(verdict.blame, Blame::kRequest) << status;
    EXPECT_FALSE(verdict.retry) << status;
    EXPECT_FALSE(verdict.worker_ended) << status;
    EXPECT_EQ(verdict.out_because, "") << status;
  }
}

TEST(Verdict, ABusyWorkerIsNotToBlame) {
  for (const int status : {429, 503}) {
    const Verdict verdict = of_error(api::from_status(status, "x"));
    EXPECT_EQ(verdict.blame, Blame::kNobody);
    EXPECT_TRUE(verdict.retry);
    EXPECT_FALSE(verdict.worker_ended);
  }
}

TEST(Verdict, OneInternalErrorProvesNothing) {
  const Verdict verdict = of_error(api::from_status(500, "x"));
  EXPECT_EQ(verdict.blame, Blame::kUnproven);
  EXPECT_TRUE(verdict.retry);
  EXPECT_FALSE(verdict.worker_ended);
}

TEST(Verdict, WorkersThatEnd) {
  for (const AttemptResult& result :
       {AttemptResult{.end = AttemptEnd::kErrorAnswer, .error = api::engine_failed("x")},
        AttemptResult{.end = AttemptEnd::kBroken}, AttemptResult{.end = AttemptEnd::kEjected}}) {
    const Verdict verdict = judge(result);
    EXPECT_EQ(verdict.blame, Blame::kWorker);
    EXPECT_TRUE(verdict.retry);
    EXPECT_TRUE(verdict.worker_ended);
  }
}

TEST(Verdict, WorkersThatCannotBeUsed) {
  Verdict verdict = judge({.end = AttemptEnd::kUnreachable, .refused = true});
  EXPECT_EQ(verdict.blame, Blame::kWorker);
  EXPECT_EQ(verdict.out_because, "connection refused");
  EXPECT_FALSE(verdict.worker_ended);
  verdict = judge({.end = AttemptEnd::kNonsense});
  EXPECT_EQ(verdict.blame, Blame::kWorker);
  EXPECT_TRUE(verdict.retry);
  EXPECT_FALSE(verdict.worker_ended);
  api::ApiError other_secret = api::from_status(400, "x");
  other_secret.param = "x-moectl-cluster-signature";
  verdict = of_error(other_secret);
  EXPECT_EQ(verdict.blame, Blame::kWorker);
  EXPECT_TRUE(verdict.retry);
  EXPECT_NE(verdict.out_because, "");
}

TEST(Verdict, ARoutersOwnLimitTouchesNoWorker) {
  const Verdict verdict = judge({.end = AttemptEnd::kOwnLimit});
  EXPECT_EQ(verdict.blame, Blame::kRouter);
  EXPECT_FALSE(verdict.retry);
  EXPECT_EQ(verdict.out_because, "");
}

TEST(ParseError, AnswersAndEvents) {
  api::ApiError sent = api::from_status(400, "too hot");
  sent.param = "temperature";
  sent.code = "c";
  for (const int status : {0, 400}) {
    const api::ApiError back = api::parse_error(api::error_body(sent), status);
    EXPECT_EQ(back.status, 400);
    EXPECT_EQ(back.message, "too hot");
    EXPECT_EQ(back.param, "temperature");
    EXPECT_EQ(back.code, "c");
  }
  EXPECT_EQ(api::parse_error(api::error_body(api::engine_failed("x")), 0).code, api::kEngineFailed);
  for (const int status : {400, 401, 404, 429, 503, 500})
    EXPECT_EQ(api::parse_error(api::error_body(api::from_status(status, "x")), 0).status, status);
  for (const std::string& other : {std::string(), std::string("{}"), std::string("[1]"), std::string(R"({"error":5})"),
                                   std::string(100'000, '['), std::string(R"({"error":{"code":5,"message":[]}})")}) {
    EXPECT_EQ(api::parse_error(other, 418).status, 418);
    EXPECT_EQ(api::parse_error(other, 0).status, 500);
  }
}

}  // namespace
}  // namespace moectl::router
