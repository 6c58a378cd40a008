// Logs of a deployment's instances: bounded, rotated, kept from before the last start, and read whole all the same.
#include "cmd/deploy/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "cmd/deploy/duration.h"
#include "core/base/error.h"

namespace moectl {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class DeployLog : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              fmt::format("moectl-{}-{}", ::testing::UnitTest::GetInstance()->current_test_info()->name(), ::getpid());
    fs::create_directories(folder_ / "logs");
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(bool previous = false) const { return log_path(folder_.string(), "decode/0", previous); }

  static std::vector<std::string> lines(LogReader& reader) {
    std::vector<std::string> result;
    reader.read([&result](LogLine line) {
      EXPECT_GT(line.unix_ms, 0);
      result.push_back(std::move(line.text));
    });
    return result;
  }
  std::vector<std::string> all(bool previous = false) const {
    LogReader reader(path(previous));
    return lines(reader);
  }

  fs::path folder_;
};

TEST_F(DeployLog, PiecesBecomeLinesAndTheLastOneIsKeptWithoutItsEnd) {
  {
    LogWriter log(folder_.string(), "decode/0");
    log.write("one\ntw");
    EXPECT_THAT(all(), ElementsAre("one"));
    log.write("o\n\n12 three");
  }
  EXPECT_THAT(all(), ElementsAre("one", "two", "", "12 three"));
}

TEST_F(DeployLog, LongLinesAreBroken) {
  {
    LogWriter log(folder_.string(), "decode/0");
    log.write(std::string(2 * kMaxLogLine + 5, 'x') + "\n");
  }
  EXPECT_THAT(all(), ElementsAre(std::string(kMaxLogLine, 'x'), std::string(kMaxLogLine, 'x'), "xxxxx"));
}

TEST_F(DeployLog, TwoFilesOfBoundedSizeAndAFollowerThatMissesNothing) {
  constexpr size_t kMax = 1000;
  LogReader follower(path());
  std::vector<std::string> written, followed;
  LogWriter log(folder_.string(), "decode/0", kMax);
  for (int i = 0; i < 500; ++i) {
    written.push_back(fmt::format("line {}", i));
    log.write(written.back() + "\n");
    for (std::string& line : lines(follower)) followed.push_back(std::move(line));
  }
  EXPECT_EQ(followed, written);
  EXPECT_LE(fs::file_size(path()), kMax);
  EXPECT_LE(fs::file_size(path() + ".1"), kMax);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "logs"), {}), 2);
  const std::vector<std::string> kept = all();
  EXPECT_GT(kept.size(), 20u);
  EXPECT_EQ(kept, std::vector<std::string>(written.end() - long(kept.size()), written.end()));
}

TEST_F(DeployLog, AStartKeepsTheLogBeforeIt) {
  LogReader follower(path());
  for (const char* text : {"first", "second", "third"}) {
    LogWriter log(folder_.string(), "decode/0");
    log.line(text);
    EXPECT_THAT(lines(follower), ElementsAre(text));
  }
  EXPECT_THAT(all(), ElementsAre("third"));
  EXPECT_THAT(all(true), ElementsAre("second"));
  EXPECT_THAT(lines(follower), IsEmpty());
}

TEST(DeployDuration, Texts) {
  EXPECT_EQ(parse_duration("90", "--since").count(), 90);
  EXPECT_EQ(parse_duration("5m", "--since").count(), 300);
  EXPECT_EQ(parse_duration("1h30m", "--since").count(), 5400);
  EXPECT_EQ(parse_duration("2d", "--since").count(), 172800);
  for (const char* bad : {"", "m", "5x", "-1", "1h-3m", "99999999999", " 5m", "5 m"})
    EXPECT_THROW(parse_duration(bad, "--since"), Error) << bad;
}

}  // namespace
}  // namespace moectl
