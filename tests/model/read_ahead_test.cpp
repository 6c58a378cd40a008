// ReadAhead on a file that is not in the page cache: pages are read before any access, and of a large file only a
// window.
#include "core/model/read_ahead.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

namespace moectl {
namespace {

// A sparse file of `size` bytes, mapped.
class MappedFile {
 public:
  explicit MappedFile(size_t size) : size_(size) {
    const auto path = std::filesystem::temp_directory_path() / ("moectl-read-ahead-" + std::to_string(::getpid()));
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    std::filesystem::remove(path);
    if (fd >= 0 && ::ftruncate(fd, off_t(size)) == 0) data_ = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    ::close(fd);
  }
  ~MappedFile() {
    if (data_ != MAP_FAILED) ::munmap(data_, size_);
  }
  bool is_there() const { return data_ != MAP_FAILED; }
  ReadAhead::Bytes bytes(size_t begin, size_t num) const { return {static_cast<const std::byte*>(data_) + begin, num}; }
  // Bytes of pages in the page cache.
  size_t num_resident() const {
    const size_t page = size_t(::sysconf(_SC_PAGESIZE));
    std::vector<unsigned char> pages((size_ + page - 1) / page);
    EXPECT_EQ(::mincore(data_, size_, pages.data()), 0);
    return size_t(std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return p & 1; })) * page;
  }

 private:
  void* data_ = MAP_FAILED;
  size_t size_;
};

bool soon(auto&& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST(ReadAhead, BringsEveryByteOfEveryUse) {
  constexpr size_t kSize = (20 << 20) + 123;
  MappedFile file(kSize);
  ASSERT_TRUE(file.is_there());
  EXPECT_EQ(file.num_resident(), 0u);
  const std::vector<std::vector<ReadAhead::Bytes>> uses = {
      {file.bytes(0, 1)}, {}, {file.bytes(17 << 20, kSize - (17 << 20)), file.bytes(1, (17 << 20) - 1)}};
  ReadAhead ahead(uses, 3);
  EXPECT_TRUE(soon([&] { return file.num_resident() >= kSize; }));
  for (size_t i = 0; i < uses.size() + 3; ++i) ahead.next();  // beyond the last use: ignored
}

TEST(ReadAhead, StopsAtItsWindow) {
  constexpr size_t kUse = 4 << 20, kUses = 20, kWindow = 32 << 20, kRequest = 8 << 20;
  MappedFile file(kUse * kUses);
  ASSERT_TRUE(file.is_there());
  std::vector<std::vector<ReadAhead::Bytes>> uses;
  for (size_t i = 0; i < kUses; ++i) uses.push_back({file.bytes(i * kUse, kUse)});
  {
    ReadAhead ahead(uses, 2, kWindow);
    EXPECT_TRUE(soon([&] { return file.num_resident() >= kWindow; }));
    EXPECT_LE(file.num_resident(), kWindow + 2 * kRequest);
    ahead.next();
    EXPECT_TRUE(soon([&] { return file.num_resident() >= kWindow + kUse; }));
  }  // destroyed while it reads
  EXPECT_LT(file.num_resident(), kUse * kUses);
}

}  // namespace
}  // namespace moectl
