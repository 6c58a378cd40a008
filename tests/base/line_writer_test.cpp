// A consumer that stops must stop nobody else, and must be told what it missed.
#include "core/base/line_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

namespace moectl {
namespace {

using std::chrono::milliseconds;

struct Pipe {
  Pipe() { EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0); }
  ~Pipe() {
    ::close(fds[0]);
    ::close(fds[1]);
  }
  // Lines up to and with one that equals `last`.
  std::vector<std::string> read_until(const std::string& last) {
    std::vector<std::string> lines;
    char c;
    for (std::string line; lines.empty() || lines.back() != last;) {
      if (::read(fds[0], &c, 1) != 1) break;
      if (c != '\n') {
        line += c;
        continue;
      }
      lines.push_back(std::exchange(line, ""));
    }
    return lines;
  }
  int fds[2] = {-1, -1};
};

std::string report(int64_t count) {
  return "dropped " + std::to_string(count) + "\n";
}

TEST(LineWriter, WritesInOrder) {
  Pipe pipe;
  LineWriter writer(pipe.fds[1], report);
  for (int i = 0; i < 100; ++i) writer.write(std::to_string(i) + "\n");
  EXPECT_TRUE(writer.flush(std::chrono::seconds(60)));
  const std::vector<std::string> lines = pipe.read_until("99");
  ASSERT_EQ(lines.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(lines[size_t(i)], std::to_string(i));
  EXPECT_EQ(writer.num_dropped(), 0);
}

TEST(LineWriter, AFullPipeBlocksNobodyAndTheGapIsReportedInItsPlace) {
  Pipe pipe;
  LineWriter writer(pipe.fds[1], report);
  const int num_lines = 3 * int(LineWriter::kMaxLines);
  const std::string rest(100, '.');
  for (int i = 0; i < num_lines; ++i) writer.write(std::to_string(i) + " " + rest + "\n");
  EXPECT_FALSE(writer.flush(milliseconds(10))) << "the pipe is full, and the wait is bounded";
  const int64_t dropped = writer.num_dropped();
  EXPECT_GT(dropped, 0);
  EXPECT_LE(dropped, num_lines - int64_t(LineWriter::kMaxLines));

  std::vector<std::string> lines = pipe.read_until("dropped " + std::to_string(dropped));
  ASSERT_EQ(int64_t(lines.size()), num_lines - dropped + 1) << "every line is there or counted";
  for (size_t i = 0; i + 1 < lines.size(); ++i) EXPECT_EQ(lines[i], std::to_string(i) + " " + rest);
  writer.write("after\n");
  EXPECT_EQ(pipe.read_until("after"), std::vector<std::string>{"after"});
  EXPECT_EQ(writer.num_dropped(), dropped);
}

TEST(LineWriter, OneLineLargerThanTheQueueIsDroppedAndReported) {
  Pipe pipe;
  LineWriter writer(pipe.fds[1], report);
  writer.write(std::string(LineWriter::kMaxBytes + 1, 'x'));
  EXPECT_EQ(pipe.read_until("dropped 1"), std::vector<std::string>{"dropped 1"});
}

TEST(LineWriter, ADescriptorThatTakesNothing) {
  const int full = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  if (full < 0) GTEST_SKIP() << "no /dev/full";
  {
    LineWriter writer(full, report);
    writer.write("lost\n");
    EXPECT_TRUE(writer.flush(std::chrono::seconds(60)));
    EXPECT_EQ(writer.num_dropped(), 1);
  }
  ::close(full);
}

TEST(LineWriter, ANonBlockingDescriptorIsWaitedFor) {
  Pipe pipe;
  ::fcntl(pipe.fds[1], F_SETFL, O_NONBLOCK);
  LineWriter writer(pipe.fds[1], report);
  const std::string large(300'000, 'x');
  writer.write(large + "\n");
  EXPECT_EQ(pipe.read_until(large), std::vector<std::string>{large});
  EXPECT_EQ(writer.num_dropped(), 0);
}

}  // namespace
}  // namespace moectl
