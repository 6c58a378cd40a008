// The sections of tokenizer.json around the model: normalizer, pre_tokenizer, post_processor, decoder -> plain data.
// What is not done exactly as the `tokenizers` library does it is refused by name. Called once, at load.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/text/json_fields.h"
#include "core/text/normalizer.h"
#include "core/text/pretokenizer.h"
#include "core/text/token_text.h"
#include "core/text/tokenizer.h"

namespace moectl {

// null: none.
std::vector<NormalizerStep> read_normalizer(const JsonFields& fields, const nlohmann::json& normalizer);

struct PreTokenizerSection {
  PreTokenizerSteps steps;
  bool byte_level = false;  // the vocabulary spells bytes in GPT-2's alphabet; otherwise it spells text
};
PreTokenizerSection read_pre_tokenizer(const JsonFields& fields, const nlohmann::json& pre_tokenizer);

SpecialTokens read_post_processor(const JsonFields& fields, const nlohmann::json& post_processor, int64_t vocab_size);

// `byte_level`: the decoder must be, too.
DecodeRules read_decoder(const JsonFields& fields, const nlohmann::json& decoder, bool byte_level);

}  // namespace moectl
