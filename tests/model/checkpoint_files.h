// Checkpoint folders written by a test: a temporary folder, JSON files, and safetensors files, valid or damaged.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>

#include "core/base/error.h"

namespace moectl::test {

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "moectl_test_XXXXXX").string();
    if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ec;
    std::filesystem::remove_all(path_, ec);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void write(const std::string& name, std::string_view content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_file(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A safetensors file: header length, header, data.
inline std::string safetensors(std::string_view header, std::string_view data, uint64_t header_bytes) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += char(header_bytes >> (8 * i));
  out += header;
  return out += data;
}
inline std::string safetensors(std::string_view header, std::string_view data = {}) {
  return safetensors(header, data, header.size());
}

struct Failure {
  Code code = Code::kInternal;
  std::string message;
};

// The Error that `f` throws; a test failure when it throws none or something else.
template <class F>
Failure failure_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return {e.code(), e.what()};
  } catch (const std::exception& e) {
    ADD_FAILURE() << "not an Error: " << e.what();
    return {};
  }
  ADD_FAILURE() << "no error was thrown";
  return {};
}

inline std::filesystem::path source_dir() {
  return MOECTL_SOURCE_DIR;
}

}  // namespace moectl::test
