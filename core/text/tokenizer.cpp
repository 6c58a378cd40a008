#include "core/text/tokenizer.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/text/added_tokens.h"
#include "core/text/bpe.h"
#include "core/text/normalizer.h"
#include "core/text/pretokenizer.h"
#include "core/text/tiktoken_chunks.h"
#include "core/text/tokenizer_file.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

std::vector<AddedToken> raw_tokens(const std::vector<AddedToken>& tokens) {
  std::vector<AddedToken> selected;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(selected),
               [](const AddedToken& token) { return !token.normalized; });
  return selected;
}

// The others, as the normalizer spells them.
std::vector<AddedToken> normalized_tokens(const std::vector<AddedToken>& tokens, const Normalizer& normalizer) {
  std::vector<AddedToken> selected;
  for (AddedToken token : tokens) {
    if (!token.normalized) continue;
    token.content = normalizer.apply(token.content);
    if (!token.content.empty()) selected.push_back(std::move(token));
  }
  return selected;
}

// The runs of text[begin, end), with offsets from `begin`.
std::vector<TrustRun> clip(const std::vector<TrustRun>& runs, size_t begin, size_t end) {
  std::vector<TrustRun> clipped;
  for (const TrustRun& run : runs) {
    if (run.end <= begin) continue;
    clipped.push_back({std::min(run.end, end) - begin, run.trusted});
    if (run.end >= end) break;
  }
  return clipped;
}

void require_utf8(std::string_view text) {
  const size_t invalid = find_invalid_utf8(text);
  if (invalid != std::string_view::npos) {
    throw Error(Code::kInvalidArgument, fmt::format("the text is not valid UTF-8 at byte {}", invalid));
  }
}

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(TokenizerFile file)
      : ids_(std::move(file.ids)),
        token_bytes_(std::move(file.token_bytes)),
        special_(std::move(file.special)),
        is_byte_(std::move(file.is_byte)),
        special_tokens_(std::move(file.special_tokens)),
        decode_rules_(std::move(file.decode)),
        normalizer_(std::move(file.normalizer)),
        raw_tokens_(raw_tokens(file.added)),
        normalized_tokens_(normalized_tokens(file.added, normalizer_)),
        split_long_runs_(file.split_long_runs),
        pre_tokenizer_(std::move(file.pre_tokenizer)),
        bpe_(std::move(file.model)) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    require_utf8(text);
    return encode_runs(text, {{text.size(), true}});
  }

  std::vector<int32_t> encode(std::span<const TextSegment> segments) const override {
    std::string text;
    std::vector<TrustRun> runs;
    for (const TextSegment& segment : segments) {
      if (segment.text.empty()) continue;
      require_utf8(segment.text);
      text += segment.text;
      if (!runs.empty() && runs.back().trusted == segment.trusted) {
        runs.back().end = text.size();
      } else {
        runs.push_back({text.size(), segment.trusted});
      }
    }
    return encode_runs(text, runs);
  }

  const SpecialTokens& special_tokens() const override { return special_tokens_; }

  std::string decode(std::span<const int32_t> ids, bool skip_special) const override {
    TokenText decoder(decode_rules_);
    std::string text;
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab_size() || (skip_special && special_[id])) continue;
      decoder.push(token_bytes_[id], is_byte_[id], text);
    }
    decoder.finish(text);
    return text;
  }

  std::string_view token_bytes(int32_t id) const override {
    return id >= 0 && id < vocab_size() ? std::string_view(token_bytes_[id]) : std::string_view();
  }
  const DecodeRules& decode_rules() const override { return decode_rules_; }
  bool is_byte(int32_t id) const override { return id >= 0 && id < vocab_size() && is_byte_[id]; }
  bool is_special(int32_t id) const override { return id >= 0 && id < vocab_size() && special_[id]; }
  std::optional<int32_t> token_id(std::string_view content) const override {
    const auto found = ids_.find(std::string(content));
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(token_bytes_.size()); }

 private:
  std::vector<int32_t> encode_runs(std::string_view text, const std::vector<TrustRun>& runs) const {
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3);
    PreTokenizer::Pieces pieces;
    for (const TextPart& part : raw_tokens_.split(text, runs)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const std::string_view between = text.substr(part.begin, part.end - part.begin);
      const bool is_first = part.begin == 0;
      if (normalizer_.empty() && normalized_tokens_.empty()) {
        encode_plain(between, is_first, pieces, ids);
      } else if (normalized_tokens_.empty()) {
        encode_plain(normalizer_.apply(between), is_first, pieces, ids);
      } else {
        encode_normalized(between, is_first, clip(runs, part.begin, part.end), pieces, ids);
      }
    }
    return ids;
  }

  // Normalises, then looks for the added tokens that count in normalised text only.
  void encode_normalized(std::string_view text, bool is_first, std::vector<TrustRun> runs, PreTokenizer::Pieces& pieces,
                         std::vector<int32_t>& ids) const {
    // Run by run, so that nothing in untrusted text can change, by composing with it, a token beside it.
    std::string normalized;
    size_t begin = 0;
    for (TrustRun& run : runs) {
      normalized += normalizer_.apply(text.substr(begin, run.end - begin), begin == 0);
      begin = run.end;
      run.end = normalized.size();
    }
    for (const TextPart& part : normalized_tokens_.split(normalized, runs)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_plain(std::string_view(normalized).substr(part.begin, part.end - part.begin),
                     is_first && part.begin == 0, pieces, ids);
      }
    }
  }

  // `text` holds no added tokens and is normalised; is_first: it begins the whole text.
  void encode_plain(std::string_view text, bool is_first, PreTokenizer::Pieces& pieces,
                    std::vector<int32_t>& ids) const {
    if (!split_long_runs_) return encode_chunk(text, is_first, pieces, ids);
    for (const std::string_view chunk : tiktoken_chunks(text)) encode_chunk(chunk, is_first, pieces, ids);
  }

  void encode_chunk(std::string_view text, bool is_first, PreTokenizer::Pieces& pieces,
                    std::vector<int32_t>& ids) const {
    pre_tokenizer_.split(text, is_first, pieces);
    for (const TextRange& range : pieces.ranges) {
      bpe_.encode(pieces.text.substr(range.begin, range.end - range.begin), ids);
    }
  }

  std::unordered_map<std::string, int32_t> ids_;
  std::vector<std::string> token_bytes_;
  std::vector<bool> special_, is_byte_;
  SpecialTokens special_tokens_;
  DecodeRules decode_rules_;
  Normalizer normalizer_;
  AddedTokens raw_tokens_;         // looked for in the text as it came
  AddedTokens normalized_tokens_;  // looked for in what the normalizer made of it
  bool split_long_runs_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
};

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::filesystem::path& dir) {
  const auto has = [&](const char* name) {
    std::error_code error;
    return std::filesystem::exists(dir / name, error);
  };
  const auto make = [](TokenizerFile file) { return std::make_shared<const BpeTokenizer>(std::move(file)); };
  if (has("tokenizer.json")) return make(read_tokenizer_file(dir / "tokenizer.json"));
  if (has("tiktoken.model")) return make(read_kimi_files(dir / "tiktoken.model", dir / "tokenizer_config.json"));
  if (has("hy.tiktoken")) return make(read_hunyuan_file(dir / "hy.tiktoken"));
  for (const char* other : {"tokenizer.model", "tekken.json", "vocab.json"}) {
    if (!has(other)) continue;
    throw Error(Code::kBadData,
                fmt::format("{}: is not read; a tokenizer.json is needed beside it (transformers writes one: "
                            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))",
                            (dir / other).string()));
  }
  throw Error(
      Code::kNotFound,
      fmt::format("{}: there is no tokenizer.json, nor tiktoken.model or hy.tiktoken; a checkpoint's folder holds "
                  "one of them",
                  (dir / "tokenizer.json").string()));
}

}  // namespace moectl
