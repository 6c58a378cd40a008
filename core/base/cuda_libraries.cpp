#include "core/base/cuda_libraries.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace moectl {

namespace fs = std::filesystem;

std::vector<std::string> cuda_library_candidates(const std::vector<std::string>& names) {
  std::vector<std::string> folders;
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* root = std::getenv(variable))
      for (const char* sub : {"lib64", "lib", "targets/x86_64-linux/lib"})
        folders.push_back((fs::path(root) / sub).string());
  for (const char* folder :
       {"/usr/local/cuda/lib64", "/usr/local/cuda/lib", "/usr/local/cuda/targets/x86_64-linux/lib",
        "/usr/local/cuda-13/lib64", "/usr/local/cuda-12/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64"})
    folders.emplace_back(folder);
  std::vector<std::string> paths = names;
  std::error_code failed;
  for (const std::string& folder : folders)
    for (const std::string& name : names)
      if (fs::path path = fs::path(folder) / name; fs::exists(path, failed)) paths.push_back(path.string());
  return paths;
}

}  // namespace moectl
