// Tokenizer: the tokenizer files of a checkpoint (tokenizer.json, or tiktoken ranks) -> token ids and back. Immutable
// after load; every method may be called from any thread. It must not know about requests, models or HTTP.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/token_text.h"

namespace moectl {

// What stands around a text that is encoded with special tokens.
struct SpecialTokens {
  std::vector<int32_t> before, after;
};

// A run of prompt text and whom its bytes came from. Control tokens (all added tokens of tokenizer.json, `special` or
// not) are recognised only where `trusted`; message content is never trusted (fault matrix, row 25).
struct TextSegment {
  std::string text;
  bool trusted = false;
};

class Tokenizer {
 public:
  // Reads `dir`/tokenizer.json or, without it, tiktoken.model or hy.tiktoken. Throws Error{kBadData} naming the file
  // and the field that is wrong or unsupported (duplicate ids, merges that name unknown tokens, an unknown
  // pre-tokenizer, a pattern that PCRE2 refuses).
  static std::shared_ptr<const Tokenizer> load(const std::filesystem::path& dir);
  virtual ~Tokenizer() = default;

  // As the `tokenizers` library's encode(text, add_special_tokens=False): added tokens inside the text count.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // A rendered chat: added tokens count in trusted bytes only, and the text between two of them is pre-tokenised as one
  // piece, whatever segments it came from.
  virtual std::vector<int32_t> encode(std::span<const TextSegment> segments) const = 0;

  // The same, unless there are more than `max_tokens`: then nullopt, as soon as that is certain, so time and memory are
  // bounded by max_tokens but for a few passes over the bytes.
  virtual std::optional<std::vector<int32_t>> encode_at_most(std::string_view text, size_t max_tokens) const = 0;
  virtual std::optional<std::vector<int32_t>> encode_at_most(std::span<const TextSegment> segments,
                                                             size_t max_tokens) const = 0;
  // No token stands for more bytes of a text that is encoded; 0: no such bound is known, because text may vanish.
  virtual size_t max_bytes_per_token() const = 0;

  // What stands before and after a text that is no rendered chat, as the file's post-processor puts it there.
  virtual const SpecialTokens& special_tokens() const = 0;

  // As the library's decode. Ids outside the vocabulary give nothing. Invalid UTF-8 becomes U+FFFD as there.
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special) const = 0;
  // The raw bytes a token stands for (may be part of a UTF-8 character); empty for ids outside the vocabulary.
  virtual std::string_view token_bytes(int32_t id) const = 0;
  // How such bytes become text: for a TokenText, with what is_byte says of each token.
  virtual const DecodeRules& decode_rules() const = 0;
  virtual bool is_byte(int32_t id) const = 0;
  // True for added tokens marked `special` (skipped by decode(skip_special)).
  virtual bool is_special(int32_t id) const = 0;
  // Id of an exact token content ("</think>"); nullopt when the vocabulary has none.
  virtual std::optional<int32_t> token_id(std::string_view content) const = 0;
  // Highest id + 1, added tokens included.
  virtual int32_t vocab_size() const = 0;
};

}  // namespace moectl
