// The recorded references of the checkpoints (models/demo, tests/golden/*): prompts, greedy answers, logprobs and MTP
// drafts that transformers computed; and what rows of logits are compared with them by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moectl::test {

struct ReferenceCase {
  std::vector<int32_t> ids;  // prompt, then answer
  int prompt_size = 0;
  std::vector<double> logprobs;  // of ids[1], ids[2], ...
  std::vector<int32_t> drafts;   // of the MTP module for ids[prompt_size + 1], ...; may be empty
};

std::vector<ReferenceCase> reference_cases(const std::string& dir);

// Folders of all checkpoints with references. MOECTL_GOLDEN_DIR: those of another folder instead.
std::vector<std::string> golden_dirs();

int arg_max(const std::vector<float>& row);
double log_softmax(const std::vector<float>& row, int id);

}  // namespace moectl::test
