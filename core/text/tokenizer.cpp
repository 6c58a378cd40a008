#include "core/text/tokenizer.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/text/added_tokens.h"
#include "core/text/bpe.h"
#include "core/text/normalizer.h"
#include "core/text/pretokenizer.h"
#include "core/text/tokenizer_file.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

std::vector<AddedToken> select_added(const std::vector<AddedToken>& tokens, bool normalized) {
  std::vector<AddedToken> selected;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(selected),
               [&](const AddedToken& token) { return token.normalized == normalized; });
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
        raw_tokens_(select_added(file.added, false)),
        normalized_tokens_(select_added(file.added, true)),
        nfc_(file.nfc),
        pre_tokenizer_(std::move(file.splits), file.add_prefix_space, file.num_splits_after_prefix),
        bpe_(file.byte_ids, file.merges, std::move(file.whole_pieces)) {}

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

  std::string decode(std::span<const int32_t> ids, bool skip_special) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      if (!(skip_special && is_special(id))) bytes += token_bytes(id);
    }
    std::string text;
    append_utf8_lossy(text, bytes);
    return text;
  }

  std::string_view token_bytes(int32_t id) const override {
    return id >= 0 && id < vocab_size() ? std::string_view(token_bytes_[id]) : std::string_view();
  }
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
      if (!nfc_ && normalized_tokens_.empty()) {
        encode_plain(between, pieces, ids);
      } else {
        encode_normalized(between, clip(runs, part.begin, part.end), pieces, ids);
      }
    }
    return ids;
  }

  // Normalises, then looks for the added tokens that count in normalised text only.
  void encode_normalized(std::string_view text, std::vector<TrustRun> runs, PreTokenizer::Pieces& pieces,
                         std::vector<int32_t>& ids) const {
    if (normalized_tokens_.empty()) {
      encode_plain(nfc(text), pieces, ids);
      return;
    }
    // Run by run, so that nothing in untrusted text can change, by composing with it, a token beside it.
    std::string normalized;
    size_t begin = 0;
    for (TrustRun& run : runs) {
      const std::string_view piece = text.substr(begin, run.end - begin);
      begin = run.end;
      normalized += nfc_ ? nfc(piece) : std::string(piece);
      run.end = normalized.size();
    }
    for (const TextPart& part : normalized_tokens_.split(normalized, runs)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_plain(std::string_view(normalized).substr(part.begin, part.end - part.begin), pieces, ids);
      }
    }
  }

  void encode_plain(std::string_view text, PreTokenizer::Pieces& pieces, std::vector<int32_t>& ids) const {
    pre_tokenizer_.split(text, pieces);
    for (const TextRange& range : pieces.ranges) {
      bpe_.encode(pieces.text.substr(range.begin, range.end - range.begin), ids);
    }
  }

  std::unordered_map<std::string, int32_t> ids_;
  std::vector<std::string> token_bytes_;
  std::vector<bool> special_;
  AddedTokens raw_tokens_;         // looked for in the text as it came
  AddedTokens normalized_tokens_;  // looked for in what the normalizer made of it
  bool nfc_;
  PreTokenizer pre_tokenizer_;
  ByteBpe bpe_;
};

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::filesystem::path& dir) {
  return std::make_shared<const BpeTokenizer>(read_tokenizer_file(dir / "tokenizer.json"));
}

}  // namespace moectl
