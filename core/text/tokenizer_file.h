// The files of a checkpoint's tokenizer as plain data: read, validated, and everything refused that we do not do
// exactly. Called once, at load.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/text/added_tokens.h"
#include "core/text/bpe.h"
#include "core/text/normalizer.h"
#include "core/text/pretokenizer.h"
#include "core/text/token_text.h"
#include "core/text/tokenizer_steps.h"

namespace moectl {

struct TokenizerFile {
  static constexpr int64_t kMaxTokens = 2 << 20;  // ids are below this: tables by id stay small whatever a file says

  std::unordered_map<std::string, int32_t> ids;  // content as the file spells it -> id; added tokens included
  std::vector<std::string> token_bytes;          // by id; empty where the file has no token
  std::vector<bool> special;                     // by id
  std::vector<bool> is_byte;                     // by id: <0x00> to <0xFF> of byte fallback
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;
  PreTokenizerSteps pre_tokenizer;
  bool split_long_runs = false;  // texts are cut where the published code of tiktoken checkpoints cuts them
  BpeModel model;
  SpecialTokens special_tokens;
  DecodeRules decode;
};

// tokenizer.json. Throws Error{kBadData} naming file and field.
TokenizerFile read_tokenizer_file(const std::filesystem::path& file);

}  // namespace moectl
