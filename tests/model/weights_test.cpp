// Loading: what cannot fit is refused before anything is allocated.
#include "core/model/weights.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/base/memory.h"

namespace moectl {
namespace {

TEST(Memory, IsKnownAndPositive) {
  EXPECT_GT(available_memory_bytes(), 1 << 20);
}

// One sparse tensor of 4 TB: valid headers, no such memory.
TEST(LoadWeights, RefusesWhatCannotFit) {
  const auto dir = std::filesystem::temp_directory_path() / fmt::format("moectl-weights-{}", ::getpid());
  std::filesystem::create_directories(dir);
  const int64_t num_bytes = int64_t{1} << 42;
  std::string header =
      fmt::format(R"({{"huge":{{"dtype":"U8","shape":[{}],"data_offsets":[0,{}]}}}})", num_bytes, num_bytes);
  {
    std::ofstream out(dir / "model.safetensors", std::ios::binary);
    const uint64_t size = header.size();
    out.write(reinterpret_cast<const char*>(&size), 8);
    out << header;
  }
  std::error_code ec;
  std::filesystem::resize_file(dir / "model.safetensors", 8 + header.size() + uint64_t(num_bytes), ec);
  if (ec) {
    std::filesystem::remove_all(dir);
    GTEST_SKIP() << "this file system holds no sparse file of 4 TB: " << ec.message();
  }
  const Checkpoint checkpoint = Checkpoint::open(dir);
  auto ops = make_ops({});
  try {
    load_weights(read_config("models/demo"), checkpoint, *ops);
    ADD_FAILURE() << "loaded";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kResourceExhausted);
    EXPECT_NE(std::string(e.what()).find("are available"), std::string::npos) << e.what();
  }
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace moectl
