#include "core/comm/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "core/base/cuda_libraries.h"
#include "core/base/error.h"

namespace moectl {
namespace {

constexpr const char* kFile = "libnccl.so.2";

std::vector<std::string> installed() {
  const char* given = std::getenv("MOECTL_NCCL");
  if (!given || !*given) return cuda_library_candidates({kFile});
  const std::filesystem::path path = given;
  std::error_code failed;
  return {(std::filesystem::is_directory(path, failed) ? path / kFile : path).string()};
}

std::string version_text(int version) {
  if (version < 10000) return fmt::format("{}.{}.{}", version / 1000, version / 100 % 10, version % 100);  // to 2.8
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

// Empty, or the first function that the library lacks.
std::string find_functions(void* library, NcclFunctions& f) {
  std::string missing;
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (!function && missing.empty()) missing = name;
  };
  find("ncclGetVersion", f.get_version);
  find("ncclGetUniqueId", f.get_unique_id);
  find("ncclCommInitRankConfig", f.comm_init_rank_config);
  find("ncclCommFinalize", f.comm_finalize);
  find("ncclCommDestroy", f.comm_destroy);
  find("ncclCommAbort", f.comm_abort);
  find("ncclCommGetAsyncError", f.comm_get_async_error);
  find("ncclGetErrorString", f.get_error_string);
  find("ncclGetLastError", f.get_last_error);
  find("ncclGroupStart", f.group_start);
  find("ncclGroupEnd", f.group_end);
  find("ncclAllGather", f.all_gather);
  find("ncclAllReduce", f.all_reduce);
  find("ncclReduceScatter", f.reduce_scatter);
  find("ncclSend", f.send);
  find("ncclRecv", f.recv);
  return missing;
}

}  // namespace

const NcclLibrary& NcclLibrary::get() {
  static const NcclLibrary library(installed());
  return library;
}

NcclLibrary::NcclLibrary(const std::vector<std::string>& candidates) {
  std::string tried;
  for (const std::string& path : candidates) {
    const std::string why = try_load(path);
    if (why.empty()) return;
    tried += (tried.empty() ? "" : "; ") + why;
  }
  why_absent_ = fmt::format(
      "no NCCL that serves ({}). Install NCCL {} or later (package libnccl2, or nvidia-nccl-cu13 of PyPI), and put the "
      "folder of {} into LD_LIBRARY_PATH or its path into MOECTL_NCCL",
      tried, version_text(kMinNcclVersion), kFile);
}

// A library that does not serve is not unloaded: what its initializers did stays in the process.
std::string NcclLibrary::try_load(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return dlerror();
  if (const std::string missing = find_functions(library, functions_); !missing.empty())
    return fmt::format("{} lacks {}", path, missing);
  int version = 0;
  if (functions_.get_version(&version) != ncclSuccess) return path + " does not tell its version";
  if (version < kMinNcclVersion || version / 10000 != kMinNcclVersion / 10000)
    return fmt::format("{} is NCCL {}; {}.x from {} on is needed", path, version_text(version), kMinNcclVersion / 10000,
                       version_text(kMinNcclVersion));
  handle_ = library;
  version_ = version;
  path_ = path;
  return {};
}

std::string NcclLibrary::version() const {
  return version_text(version_);
}

}  // namespace moectl
