#include "cmd/deploy/workers_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/base/error.h"

namespace moectl {
namespace {

using testing::HasSubstr;

class WorkersFile : public testing::Test {
 protected:
  const std::string path = testing::TempDir() + fmt::format("workers_{}.yaml", ::getpid());
  void TearDown() override { std::filesystem::remove(path); }
  std::vector<router::WorkerAddress> read(const std::string& text) {
    std::ofstream(path) << text;
    return read_workers_file(path);
  }
};

TEST_F(WorkersFile, YamlAndJson) {
  const std::vector<router::WorkerAddress> expected = {{Role::kPrefill, "http://10.0.0.1:8100"},
                                                       {Role::kDecode, "https://host:8000"}};
  EXPECT_EQ(read("- role: prefill\n  url: 10.0.0.1:8100\n- {url: https://host:8000/, role: decode}\n"), expected);
  EXPECT_EQ(
      read(R"([{"role": "prefill", "url": "http://10.0.0.1:8100/"}, {"role": "decode", "url": "https://host:8000"}])"),
      expected);
}

TEST_F(WorkersFile, BadContentNamesTheLine) {
  const std::string good = "- {role: decode, url: 'http://h:1'}\n";
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {"", "expected a list"},
           {"role: decode", "expected a list"},
           {"[", "not YAML"},
           {"[]", "no decode worker"},
           {"- {role: prefill, url: 'http://h:1'}", "no decode worker"},
           {good + "- 5", ":2: expected an entry"},
           {good + "- {role: router, url: 'http://h:1'}", ":2: role `router`"},
           {good + "- {role: decode}", ":2: `url` is missing"},
           {good + "- {url: 'http://h:2'}", ":2: `role` is missing"},
           {good + "- {role: decode, url: 'http://h:2/x'}", ":2: `http://h:2/x`"},
           {good + "- {role: decode, url: 'ftp://h'}", ":2: `ftp://h`"},
           {good + "- {role: decode, url: [1]}", ":2: expected plain values"},
           {good + "- {role: decode, url: 'http://h:2', weight: 1}", ":2: unknown key `weight`"},
           {good + good, ":2: http://h:1 is given twice"},
           {std::string(2 << 20, '#'), "larger than 1 MiB"}}) {
    try {
      read(text);
      ADD_FAILURE() << text.substr(0, 100);
    } catch (const Error& e) {
      EXPECT_EQ(int(e.code()), int(Code::kBadData)) << text.substr(0, 100);
      EXPECT_THAT(e.what(), HasSubstr(message));
    }
  }
}

TEST_F(WorkersFile, Missing) {
  try {
    read_workers_file(path + ".none");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(int(e.code()), int(Code::kNotFound));
  }
}

}  // namespace
}  // namespace moectl
