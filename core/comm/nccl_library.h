// NcclLibrary: NVIDIA's collective library, loaded at run time and never linked, so that the binary starts without it.
// Where it is absent or too old, why_absent() says what was tried and what to do. Only nccl_comm.cpp calls it.
#pragma once

#include <nccl.h>

#include <string>
#include <vector>

namespace moectl {

// Of the library; nothing older was tested. What is called here exists since 2.14.
inline constexpr int kMinNcclVersion = NCCL_VERSION(2, 28, 0);

struct NcclFunctions {
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config;
  decltype(&ncclCommFinalize) comm_finalize;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclCommGetAsyncError) comm_get_async_error;
  decltype(&ncclGetErrorString) get_error_string;
  decltype(&ncclGetLastError) get_last_error;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclReduceScatter) reduce_scatter;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;
};

class NcclLibrary {
 public:
  // The one of this machine: MOECTL_NCCL in the environment (the file, or its folder) and nothing else where it is set;
  // else libnccl.so.2 where the loader and CUDA toolkits have it. Loaded at the first call.
  static const NcclLibrary& get();

  // The first of `candidates` that serves. It stays loaded.
  explicit NcclLibrary(const std::vector<std::string>& candidates);
  NcclLibrary(const NcclLibrary&) = delete;
  NcclLibrary& operator=(const NcclLibrary&) = delete;

  bool is_present() const { return handle_ != nullptr; }
  const std::string& why_absent() const { return why_absent_; }  // one line; empty when present
  std::string version() const;                                   // "2.28.9"
  const std::string& path() const { return path_; }              // as it was given to the loader
  const NcclFunctions& functions() const { return functions_; }

 private:
  std::string try_load(const std::string& path);  // empty, or why not

  void* handle_ = nullptr;
  int version_ = 0;
  std::string why_absent_, path_;
  NcclFunctions functions_ = {};
};

}  // namespace moectl
