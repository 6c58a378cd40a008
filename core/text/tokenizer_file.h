// tokenizer.json as plain data: read, validated, and everything refused that we do not do exactly. Called once, at
// load.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/text/added_tokens.h"
#include "core/text/bpe.h"
#include "core/text/pretokenizer.h"

namespace moectl {

struct TokenizerFile {
  std::unordered_map<std::string, int32_t> ids;  // content as the file spells it -> id; added tokens included
  std::vector<std::string> token_bytes;          // by id; empty where the file has no token
  std::vector<bool> special;                     // by id
  std::vector<AddedToken> added;
  std::array<int32_t, 256> byte_ids;  // -1 for bytes that UTF-8 never has
  std::vector<BpeMerge> merges;
  std::unordered_map<std::string, int32_t> whole_pieces;  // filled when the model ignores merges for known pieces
  bool nfc = false;
  std::vector<SplitStep> splits;
  bool add_prefix_space = false;
  size_t num_splits_after_prefix = 0;
};

// Throws Error: kNotFound when there is no such file, kBadData naming file and field otherwise.
TokenizerFile read_tokenizer_file(const std::filesystem::path& file);

}  // namespace moectl
