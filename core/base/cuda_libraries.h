// Where NVIDIA's libraries that are loaded at run time and never linked (cuBLASLt, NCCL) may be.
#pragma once

#include <string>
#include <vector>

namespace moectl {

// What to give dlopen for a library known by `names`, best first: the names themselves, which the loader looks for by
// its own rules (LD_LIBRARY_PATH, ld.so.conf), then the files of these names in the folders of CUDA toolkits.
std::vector<std::string> cuda_library_candidates(const std::vector<std::string>& names);

}  // namespace moectl
