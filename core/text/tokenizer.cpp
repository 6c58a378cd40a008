#include "core/text/tokenizer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/base/error.h"
#include "core/text/added_tokens.h"
#include "core/text/bpe.h"
#include "core/text/normalizer.h"
#include "core/text/pretokenizer.h"
#include "core/text/tiktoken_chunks.h"
#include "core/text/tiktoken_file.h"
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

// Bytes of a piece, as BPE sees it, that one token stands for at most; 0: characters may vanish or share one token.
size_t longest_in_piece(const std::vector<std::string>& token_bytes, const BpeModel& model) {
  if (!model.char_ids.empty() && model.byte_ids[0] < 0) return 0;
  size_t longest = 1;
  for (const std::string& bytes : token_bytes) longest = std::max(longest, bytes.size());
  return longest;
}

// The same for a text as it comes; 0 also when the steps before BPE may take text away.
size_t longest_in_text(size_t longest_in_piece, const TokenizerFile& file) {
  // The most that a canonical composition shrinks text: U+212A KELVIN SIGN, 3 bytes, becomes K; Hangul, 9 to 3.
  constexpr size_t kNfcShrinks = 3;
  const bool takes_text_away =
      std::ranges::any_of(file.added, [](const AddedToken& t) { return t.lstrip || t.rstrip; }) ||
      std::ranges::any_of(file.normalizer, [](const auto& s) { return s.content.size() < s.pattern.size(); }) ||
      std::ranges::any_of(file.pre_tokenizer.splits,
                          [](const auto& s) { return s.behavior == SplitBehavior::kRemoved; });
  if (longest_in_piece == 0 || takes_text_away) return 0;
  size_t longest = longest_in_piece;
  for (const AddedToken& token : file.added) longest = std::max(longest, token.content.size());
  return longest * (file.normalizer.empty() ? 1 : kNfcShrinks);
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
        max_piece_bytes_(longest_in_piece(token_bytes_, file.model)),
        max_text_bytes_(longest_in_text(max_piece_bytes_, file)),
        normalizer_(std::move(file.normalizer)),
        raw_tokens_(raw_tokens(file.added)),
        normalized_tokens_(normalized_tokens(file.added, normalizer_)),
        split_long_runs_(file.split_long_runs),
        pre_tokenizer_(std::move(file.pre_tokenizer)),
        bpe_(std::move(file.model)) {}

  std::vector<int32_t> encode(std::string_view text) const override { return *encode_at_most(text, kNoLimit); }
  std::vector<int32_t> encode(std::span<const TextSegment> segments) const override {
    return *encode_at_most(segments, kNoLimit);
  }

  std::optional<std::vector<int32_t>> encode_at_most(std::string_view text, size_t max_tokens) const override {
    require_utf8(text);
    return encode_runs(text, {{text.size(), true}}, max_tokens);
  }

  std::optional<std::vector<int32_t>> encode_at_most(std::span<const TextSegment> segments,
                                                     size_t max_tokens) const override {
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
    return encode_runs(text, runs, max_tokens);
  }

  size_t max_bytes_per_token() const override { return max_text_bytes_; }

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
  // What has been encoded of a text, and how much of it may be.
  struct Encoding {
    std::vector<int32_t> ids;
    size_t max_tokens;
    bool over = false;  // there are more than max_tokens; then nothing is added any more

    void add(int32_t id) {
      ids.push_back(id);
      over = ids.size() > max_tokens;
    }
  };

  std::optional<std::vector<int32_t>> encode_runs(std::string_view text, const std::vector<TrustRun>& runs,
                                                  size_t max_tokens) const {
    Encoding out{.ids = {}, .max_tokens = max_tokens};
    out.ids.reserve(std::min(text.size() / 3, max_tokens));
    for (const TextPart& part : raw_tokens_.split(text, runs)) {
      if (out.over) break;
      if (part.id >= 0) {
        out.add(part.id);
        continue;
      }
      const std::string_view between = text.substr(part.begin, part.end - part.begin);
      const bool is_first = part.begin == 0;
      if (normalizer_.empty() && normalized_tokens_.empty()) {
        encode_plain(between, is_first, out);
      } else if (normalized_tokens_.empty()) {
        encode_plain(normalizer_.apply(between), is_first, out);
      } else {
        encode_normalized(between, is_first, clip(runs, part.begin, part.end), out);
      }
    }
    if (out.over) return std::nullopt;
    return std::move(out.ids);
  }

  // Normalises, then looks for the added tokens that count in normalised text only.
  void encode_normalized(std::string_view text, bool is_first, std::vector<TrustRun> runs, Encoding& out) const {
    // Run by run, so that nothing in untrusted text can change, by composing with it, a token beside it.
    std::string normalized;
    size_t begin = 0;
    for (TrustRun& run : runs) {
      normalized += normalizer_.apply(text.substr(begin, run.end - begin), begin == 0);
      begin = run.end;
      run.end = normalized.size();
    }
    for (const TextPart& part : normalized_tokens_.split(normalized, runs)) {
      if (out.over) return;
      if (part.id >= 0) {
        out.add(part.id);
      } else {
        encode_plain(std::string_view(normalized).substr(part.begin, part.end - part.begin),
                     is_first && part.begin == 0, out);
      }
    }
  }

  // `text` holds no added tokens and is normalised; is_first: it begins the whole text.
  void encode_plain(std::string_view text, bool is_first, Encoding& out) const {
    if (!split_long_runs_) return encode_chunk(text, is_first, out);
    for (const std::string_view chunk : tiktoken_chunks(text)) encode_chunk(chunk, is_first, out);
  }

  void encode_chunk(std::string_view text, bool is_first, Encoding& out) const {
    if (out.over) return;
    pre_tokenizer_.split(text, is_first, [&](std::string_view piece) {
      // Before a long piece is merged, which takes some 50 bytes of memory per byte.
      out.over = max_piece_bytes_ > 0 && piece.size() / max_piece_bytes_ > out.max_tokens - out.ids.size();
      if (out.over) return false;
      bpe_.encode(piece, out.ids);
      out.over = out.ids.size() > out.max_tokens;
      return !out.over;
    });
  }

  static constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

  std::unordered_map<std::string, int32_t> ids_;
  std::vector<std::string> token_bytes_;
  std::vector<bool> special_, is_byte_;
  SpecialTokens special_tokens_;
  DecodeRules decode_rules_;
  size_t max_piece_bytes_, max_text_bytes_;  // that one token stands for; 0: no bound is known
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
