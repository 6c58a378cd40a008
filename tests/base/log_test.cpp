// What a line of the log looks like to a person and to a program.
#include "core/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>

namespace moectl {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

std::string logged(log::Format format, const std::function<void()>& write) {
  log::init(format, log::Level::kInfo, false);
  testing::internal::CaptureStderr();
  write();
  std::string line = testing::internal::GetCapturedStderr();
  log::init(log::Format::kText, log::Level::kInfo, false);
  return line;
}

TEST(Log, TheRequestIsAFieldOfItsOwnInJson) {
  const auto about = [] { log::info(log::About{"r-1"}, "took {} \"ms\"\n", 5); };
  EXPECT_THAT(logged(log::Format::kText, about), EndsWith(" info  r-1 took 5 \"ms\"\n\n"));
  const std::string line = logged(log::Format::kJson, about);
  EXPECT_THAT(line, HasSubstr(R"("level":"info","request_id":"r-1","message":"took 5 \"ms\"\u000a"})"));
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1) << line;
}

TEST(Log, MeasuredValuesAreFieldsInJson) {
  const std::string name = "a \"b\"";
  const auto line = [&name] {
    const log::Field fields[] = {{"status", 200}, {"total_seconds", 0.25}, {"path", name}, {"rate", 1.0 / 0.0}};
    log::info(log::About{"r-1", fields}, "done");
  };
  EXPECT_THAT(logged(log::Format::kText, line), EndsWith(" info  r-1 done\n"));
  EXPECT_THAT(logged(log::Format::kJson, line),
              HasSubstr(R"("message":"done","status":200,"total_seconds":0.25,"path":"a \"b\"","rate":null})"));
}

TEST(Log, OtherLinesHaveNoSuchField) {
  const auto plain = [] { log::warn("{}", "full"); };
  EXPECT_THAT(logged(log::Format::kText, plain), EndsWith(" warning full\n"));
  EXPECT_THAT(logged(log::Format::kJson, plain), HasSubstr(R"("level":"warning","message":"full"})"));
  EXPECT_EQ(logged(log::Format::kJson, [] { log::debug("unseen"); }), "");
}

}  // namespace
}  // namespace moectl
