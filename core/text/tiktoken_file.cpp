// Rank files of tiktoken tokenizers, and what the code published with them adds: pattern, special tokens, normalizer.
#include "core/text/tiktoken_file.h"

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/error.h"
#include "core/text/json_fields.h"

namespace moectl {
namespace {

using nlohmann::json;

// Every token of n bytes gives up to n - 1 merges, so the size bounds the merge table, too. (Published files: 3 MB.)
constexpr uintmax_t kMaxFileBytes = 8u << 20;
constexpr uintmax_t kMaxConfigBytes = 16u << 20;
constexpr size_t kMaxTokenBytes = 4096;

constexpr std::string_view kKimiPattern =
    R"([\p{Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kHunyuanPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Kimi: this many ids after the base vocabulary, named by tokenizer_config.json or "<|reserved_token_ID|>".
constexpr int32_t kNumKimiTokens = 258;
constexpr int kNumHunyuanExtras = 205;

std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string out;
  for (size_t i = 0; i < text.size(); i += 4) {
    uint32_t group = 0;
    for (size_t j = 0; j < 4; ++j) {
      constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
      size_t value = kAlphabet.find(text[i + j]);
      if (i + j >= text.size() - padding) value = 0;
      if (value == std::string_view::npos) return std::nullopt;
      group = group << 6 | static_cast<uint32_t>(value);
    }
    for (int shift = 16; shift >= 0; shift -= 8) out.push_back(static_cast<char>(group >> shift));
  }
  out.resize(out.size() - padding);
  return out;
}

class RankFile {
 public:
  explicit RankFile(const std::filesystem::path& file) : file_(file.string()) {}

  // Calls `add(token, rank, line number)` for every line.
  template <class Add>
  void read(const Add& add) const {
    const std::string text = content();
    int64_t number = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      std::string_view line = std::string_view(text).substr(begin, end - begin);
      if (line.ends_with('\r')) line.remove_suffix(1);
      begin = end + 1;
      ++number;
      if (line.empty()) continue;
      const size_t space = line.find(' ');
      const auto token = decode_base64(line.substr(0, space));
      if (!token) fail(number, "does not begin with a token in base64");
      if (token->size() > kMaxTokenBytes) fail(number, fmt::format("a token of {} bytes", token->size()));
      int64_t rank = -1;
      if (space != std::string_view::npos) {
        rank = 0;
        for (const char c : line.substr(space + 1)) {
          if (c < '0' || c > '9' || rank >= TokenizerFile::kMaxTokens) rank = INT64_MAX;
          if (rank == INT64_MAX) break;
          rank = rank * 10 + (c - '0');
        }
      }
      if (rank < 0 || rank >= TokenizerFile::kMaxTokens || line.size() == space + 1) {
        fail(number, fmt::format("does not end in a rank from 0 to {}", TokenizerFile::kMaxTokens - 1));
      }
      add(*token, static_cast<int32_t>(rank), number);
    }
  }

  [[noreturn]] void fail(int64_t line, const std::string& what) const {
    throw Error(
        Code::kBadData,
        fmt::format("{}: line {}: {}; expected lines of a token in base64, a space and its rank", file_, line, what));
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(Code::kBadData, fmt::format("{}: {}", file_, what));
  }

 private:
  std::string content() const {
    std::error_code error;
    const uintmax_t size = std::filesystem::file_size(file_, error);
    if (error) fail(fmt::format("cannot be read ({})", error.message()));
    if (size > kMaxFileBytes) fail(fmt::format("{} bytes, expected at most {}", size, kMaxFileBytes));
    std::ifstream stream(file_, std::ios::binary);
    std::string text(size, '\0');
    if (!stream.read(text.data(), static_cast<std::streamsize>(size))) fail("cannot be read");
    return text;
  }

  std::string file_;
};

using Tokens = std::vector<std::string>;  // bytes by id

// Two neighbours merge when together they are a token, the one of lowest id first: every way to cut a token in two is a
// merge of its rank.
void add_merges(const RankFile& file, const Tokens& tokens, TokenizerFile& out) {
  std::unordered_map<std::string_view, int32_t> ids;
  ids.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) ids.emplace(tokens[id], static_cast<int32_t>(id));
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    const auto found = ids.find(std::string_view(&byte, 1));
    if (found == ids.end()) file.fail(fmt::format("has no token for byte 0x{:02x}; every byte needs one", b));
    out.model.byte_ids[b] = found->second;
  }
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = ids.find(token.substr(0, cut)), right = ids.find(token.substr(cut));
      if (left == ids.end() || right == ids.end()) continue;
      const auto rank = static_cast<int32_t>(id);
      out.model.merges.push_back({left->second, right->second, rank, rank});
    }
  }
}

TokenizerFile make(const RankFile& file, Tokens tokens, const std::vector<AddedToken>& added, std::string_view pattern,
                   const std::string& where) {
  TokenizerFile out;
  add_merges(file, tokens, out);
  for (size_t id = 0; id < tokens.size(); ++id) {
    out.model.whole_pieces.emplace(tokens[id], static_cast<int32_t>(id));
    out.ids.emplace(tokens[id], static_cast<int32_t>(id));
  }
  out.token_bytes = std::move(tokens);
  for (const AddedToken& token : added) {
    out.token_bytes.push_back(token.content);
    out.ids.insert_or_assign(token.content, token.id);
    out.model.whole_pieces.erase(token.content);  // only trusted text may hold it
  }
  out.is_byte.resize(out.token_bytes.size());
  out.special.resize(out.token_bytes.size());
  for (const AddedToken& token : added) out.special[static_cast<size_t>(token.id)] = token.special;
  out.added = added;
  SplitStep split;
  split.regex.emplace(pattern, where);
  out.pre_tokenizer.splits.push_back(std::move(split));
  return out;
}

std::vector<AddedToken> kimi_tokens(const std::filesystem::path& config_file, int32_t first) {
  const JsonFields fields(config_file);
  const json config = fields.parse(kMaxConfigBytes);
  const json& named = fields.expect_object(
      fields.member(fields.expect_object(config, "the document"), "added_tokens_decoder", "the document"),
      "added_tokens_decoder");
  std::vector<AddedToken> tokens(kNumKimiTokens);
  for (int32_t i = 0; i < kNumKimiTokens; ++i) {
    tokens[i].id = first + i;
    tokens[i].content = fmt::format("<|reserved_token_{}|>", first + i);
  }
  std::unordered_map<std::string, std::string> seen;
  for (const auto& [key, entry] : named.items()) {
    const std::string path = "added_tokens_decoder[" + JsonFields::quoted(key) + "]";
    const bool digits = !key.empty() && key.size() <= 9 && key.find_first_not_of("0123456789") == std::string::npos;
    const int32_t id = digits ? std::stoi(key) : -1;
    if (id < first || id >= first + kNumKimiTokens) {
      fields.fail(path, fmt::format("is no id from {} to {}, which follow the ranks of tiktoken.model", first,
                                    first + kNumKimiTokens - 1));
    }
    AddedToken& token = tokens[id - first];
    token.content = fields.string_member(fields.expect_object(entry, path), "content", path);
    token.special = fields.bool_or(entry, "special", false, path);
    if (token.content.empty()) fields.fail(path + ".content", "is empty");
    for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
      if (fields.bool_or(entry, flag, false, path)) fields.fail(path + "." + flag, "is true; it is not supported here");
    }
    const auto [other, is_new] = seen.emplace(token.content, key);
    if (!is_new)
      fields.fail(path, fmt::format("{} is token {} already", JsonFields::quoted(token.content), other->second));
  }
  return tokens;
}

}  // namespace

TokenizerFile read_kimi_files(const std::filesystem::path& ranks, const std::filesystem::path& config) {
  const RankFile file(ranks);
  Tokens tokens;
  std::unordered_map<std::string, int64_t> lines;
  file.read([&](const std::string& token, int32_t rank, int64_t line) {
    if (const auto [other, is_new] = lines.emplace(token, line); !is_new) {
      file.fail(line, fmt::format("the token of line {} once more", other->second));
    }
    const auto index = static_cast<size_t>(rank);
    if (index >= tokens.size()) tokens.resize(index + 1);
    if (!tokens[index].empty()) file.fail(line, fmt::format("rank {} belongs to another token already", rank));
    tokens[index] = token;
  });
  if (tokens.empty()) file.fail("has no tokens");
  if (lines.size() != tokens.size()) {
    file.fail(fmt::format("has {} tokens and ranks up to {}; expected every rank from 0 on", lines.size(),
                          tokens.size() - 1));
  }
  const std::vector<AddedToken> added = kimi_tokens(config, static_cast<int32_t>(tokens.size()));
  TokenizerFile out = make(file, std::move(tokens), added, kKimiPattern, ranks.string());
  out.split_long_runs = true;
  return out;
}

TokenizerFile read_hunyuan_file(const std::filesystem::path& ranks) {
  const RankFile file(ranks);
  Tokens tokens;
  std::unordered_map<std::string, int64_t> lines;
  file.read([&](const std::string& token, int32_t, int64_t line) {  // ranks are the order; a repeated token is skipped
    if (lines.emplace(token, line).second) tokens.push_back(token);
  });
  std::vector<AddedToken> added;
  const auto add = [&](std::string content) {
    const auto id = static_cast<int32_t>(tokens.size() + added.size());
    // Looked for in normalised text, as the whole text is normalised first.
    added.push_back({.id = id, .content = std::move(content), .special = true, .normalized = true});
  };
  for (const char* name : {"<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"}) add(name);
  for (int i = 0; i < kNumHunyuanExtras; ++i) add(fmt::format("<|extra_{}|>", i));
  TokenizerFile out = make(file, std::move(tokens), added, kHunyuanPattern, ranks.string());
  out.normalizer.push_back({.kind = NormalizerStep::Kind::kNfc, .marks = NfcMarks::kAll});
  return out;
}

}  // namespace moectl
