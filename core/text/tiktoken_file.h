// The tokenizer files of tiktoken checkpoints as the same plain data as tokenizer.json.
#pragma once

#include <filesystem>

#include "core/text/tokenizer_file.h"

namespace moectl {

// tiktoken.model (Kimi) or hy.tiktoken (Hunyuan): a token in base64 and its rank on every line. What such a file does
// not say, the code published with it does; that is here as data. Special tokens: `config`, the tokenizer_config.json
// beside it. Throws Error{kBadData} naming file and line or field.
TokenizerFile read_kimi_files(const std::filesystem::path& ranks, const std::filesystem::path& config);
TokenizerFile read_hunyuan_file(const std::filesystem::path& ranks);

}  // namespace moectl
