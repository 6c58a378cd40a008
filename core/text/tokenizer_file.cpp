#include "core/text/tokenizer_file.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/error.h"
#include "core/text/json_fields.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

using nlohmann::json;

constexpr uintmax_t kMaxFileBytes = 256u << 20;
constexpr int64_t kMaxTokens = TokenizerFile::kMaxTokens;
constexpr char32_t kWordStart = 0x2581;  // what SentencePiece writes for a space

// The characters that stand for bytes in a byte-level vocabulary (GPT-2): printable Latin-1 for itself, the other bytes
// from U+0100 on.
struct ByteAlphabet {
  std::array<char32_t, 256> character;
  std::array<int, 0x144> byte;  // -1: stands for no byte

  ByteAlphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      character[b] = printable ? static_cast<char32_t>(b) : next++;
      byte[character[b]] = b;
    }
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

// Bytes that `content` spells in the alphabet; nullopt when a character is not in it.
std::optional<std::string> spelled_bytes(const std::string& content) {
  std::string bytes;
  for (size_t pos = 0; pos < content.size();) {
    const char32_t c = next_code_point(content, pos);
    if (c >= byte_alphabet().byte.size() || byte_alphabet().byte[c] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte_alphabet().byte[c]));
  }
  return bytes;
}

// The byte that "<0x41>" stands for; nullopt for any other content.
std::optional<uint8_t> fallback_byte(const std::string& content) {
  if (content.size() != 6 || !content.starts_with("<0x") || content.back() != '>') return std::nullopt;
  int value = 0;
  for (const char c : {content[3], content[4]}) {
    if (!std::isxdigit(static_cast<unsigned char>(c))) return std::nullopt;
    value = value * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return static_cast<uint8_t>(value);
}

std::string utf8_of(char32_t c) {
  std::string text;
  append_code_point(text, c);
  return text;
}

bool occurs_in_utf8(int b) {
  return b != 0xc0 && b != 0xc1 && b < 0xf5;
}

class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : fields_(file) {}
  TokenizerFile read();

 private:
  static std::string quoted(const std::string& text) { return JsonFields::quoted(text); }
  int32_t known_token(const std::string& content, const std::string& path) const;
  void set_token(int32_t id, const std::string& content, const std::string& path);
  std::string spelled_text(const std::string& content) const;
  std::string spelled(const std::string& content) const;

  void read_model(const json& model);
  void read_vocab(const json& vocab);
  void find_byte_alphabet();
  void find_characters(const json& model);
  void read_merges(const json& merges);
  void add_merge(const std::string& left, const std::string& right, const std::string& path);
  void read_added_tokens(const json& added);
  void collect_whole_pieces();

  JsonFields fields_;
  TokenizerFile out_;
  std::vector<bool> is_added_;  // by id
  bool ignore_merges_ = false;
  bool byte_level_ = false;        // the vocabulary spells bytes in the alphabet above
  bool words_merge_apart_ = true;  // no merge met yet joins the end of a word with the start of the next
};

TokenizerFile Reader::read() {
  const json root = fields_.parse(kMaxFileBytes);
  fields_.expect_object(root, "the document");
  fields_.expect_keys(root,
                      {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                       "post_processor", "decoder", "model"},
                      "the document");
  const auto section = [&](const char* key) { return root.contains(key) ? root[key] : json(); };
  const json& model = fields_.expect_object(fields_.member(root, "model", "the document"), "model");
  out_.normalizer = read_normalizer(fields_, section("normalizer"));
  PreTokenizerSection pre_tokenizer = read_pre_tokenizer(fields_, section("pre_tokenizer"));
  out_.pre_tokenizer = std::move(pre_tokenizer.steps);
  byte_level_ = pre_tokenizer.byte_level;
  out_.decode = read_decoder(fields_, section("decoder"), byte_level_);
  read_model(model);
  read_added_tokens(section("added_tokens"));
  read_merges(fields_.array_member(model, "merges", "model"));
  out_.special_tokens =
      read_post_processor(fields_, section("post_processor"), static_cast<int64_t>(out_.token_bytes.size()));
  if (ignore_merges_) collect_whole_pieces();
  const auto& char_ids = out_.model.char_ids;
  const bool has_word_start = char_ids.size() > kWordStart && char_ids[kWordStart] >= 0;
  if (has_word_start && words_merge_apart_ && !ignore_merges_) out_.model.word_start = utf8_of(kWordStart);
  // "truncation" and "padding" concern callers that ask for batches; prompts here are never cut silently.
  return std::move(out_);
}

int32_t Reader::known_token(const std::string& content, const std::string& path) const {
  const auto found = out_.ids.find(content);
  if (found == out_.ids.end())
    fields_.fail(path, fmt::format("names {}, which the vocabulary does not have", quoted(content)));
  return found->second;
}

// What a token of a vocabulary that spells text stands for.
std::string Reader::spelled_text(const std::string& content) const {
  const std::string& pattern = out_.decode.pattern;
  if (pattern.empty()) return content;
  std::string text = content;
  for (size_t at = text.find(pattern); at != std::string::npos;
       at = text.find(pattern, at + out_.decode.content.size()))
    text.replace(at, pattern.size(), out_.decode.content);
  return text;
}

// The bytes of a token as the decoder reads its content.
std::string Reader::spelled(const std::string& content) const {
  if (byte_level_) return spelled_bytes(content).value_or(content);
  const auto byte = out_.decode.byte_fallback ? fallback_byte(content) : std::nullopt;
  return byte ? std::string(1, static_cast<char>(*byte)) : spelled_text(content);
}

void Reader::set_token(int32_t id, const std::string& content, const std::string& path) {
  const auto index = static_cast<size_t>(id);
  if (index >= out_.token_bytes.size()) {
    out_.token_bytes.resize(index + 1);
    out_.is_byte.resize(index + 1);
  }
  if (!out_.token_bytes[index].empty()) fields_.fail(path, fmt::format("id {} belongs to another token already", id));
  out_.is_byte[index] = out_.decode.byte_fallback && fallback_byte(content);
  out_.token_bytes[index] = spelled(content);
  out_.ids.emplace(content, id);
}

void Reader::read_model(const json& model) {
  const std::string& type = fields_.string_member(model, "type", "model");
  if (type != "BPE") fields_.fail("model.type", fmt::format("is {}, only \"BPE\" is supported", quoted(type)));
  fields_.expect_keys(model,
                      {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                       "byte_fallback", "ignore_merges", "vocab", "merges"},
                      "model");
  if (model.contains("dropout") && !model["dropout"].is_null() && model["dropout"] != 0.0) {
    fields_.fail("model.dropout", "is set; only tokenizers without dropout are supported");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.contains(key) && !model[key].is_null() && model[key] != "") {
      fields_.fail(fmt::format("model.{}", key), "is set; it is not supported");
    }
  }
  if (byte_level_ && fields_.bool_or(model, "byte_fallback", false, "model")) {
    fields_.fail("model.byte_fallback", "is true, but byte-level BPE has a token for every byte");
  }
  out_.model.fuse_unk = fields_.bool_or(model, "fuse_unk", false, "model");
  ignore_merges_ = fields_.bool_or(model, "ignore_merges", false, "model");
  read_vocab(fields_.expect_object(fields_.member(model, "vocab", "model"), "model.vocab"));
  byte_level_ ? find_byte_alphabet() : find_characters(model);
  if (model.contains("unk_token") && !model["unk_token"].is_null()) {
    const std::string& unk =
        fields_.string_member(model, "unk_token", "model");  // of no use where every byte has a token
    if (!byte_level_) out_.model.unk_id = known_token(unk, "model.unk_token");
  }
}

void Reader::read_vocab(const json& vocab) {
  out_.ids.reserve(vocab.size());
  for (const auto& [content, id] : vocab.items()) {
    const auto path = [&, &content = content] { return "model.vocab[" + quoted(content) + "]"; };
    if (content.empty()) fields_.fail(path(), "is an empty token");
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxTokens) fields_.id(id, kMaxTokens, path());  // throws
    set_token(id.get<int32_t>(), content, path());
  }
}

void Reader::find_byte_alphabet() {
  for (int b = 0; b < 256; ++b) {
    const std::string character = utf8_of(byte_alphabet().character[b]);
    const auto found = out_.ids.find(character);
    out_.model.byte_ids[b] = found == out_.ids.end() ? -1 : found->second;
    if (found == out_.ids.end() && occurs_in_utf8(b)) {
      fields_.fail("model.vocab",
                   fmt::format("has no token {} for byte 0x{:02x}; byte-level BPE needs one for every byte",
                               quoted(character), b));
    }
  }
}

void Reader::find_characters(const json& model) {
  out_.model.char_ids.assign(1, -1);
  for (const auto& [content, id] : out_.ids) {
    size_t pos = 0;
    const char32_t c = next_code_point(content, pos);
    if (pos != content.size()) continue;
    if (c >= out_.model.char_ids.size()) out_.model.char_ids.resize(c + 1, -1);
    out_.model.char_ids[c] = id;
  }
  out_.model.byte_ids.fill(-1);
  if (!fields_.bool_or(model, "byte_fallback", false, "model")) return;
  for (int b = 0; b < 256; ++b) {
    const std::string content = fmt::format("<0x{:02X}>", b);
    if (!out_.ids.contains(content)) {
      fields_.fail("model.vocab",
                   fmt::format("has no token {}; byte_fallback needs one for every byte", quoted(content)));
    }
    out_.model.byte_ids[b] = out_.ids[content];
  }
}

void Reader::read_added_tokens(const json& added) {
  if (!added.is_null() && !added.is_array()) {
    fields_.fail("added_tokens", fmt::format("is a JSON {}, expected an array", added.type_name()));
  }
  const Normalizer normalizer(out_.normalizer);
  for (size_t i = 0; i < added.size(); ++i) {
    const std::string path = fmt::format("added_tokens[{}]", i);
    const json& entry = fields_.expect_object(added[i], path);
    fields_.expect_keys(entry, {"id", "content", "special", "normalized", "lstrip", "rstrip", "single_word"}, path);
    AddedToken token;
    token.id = fields_.id(fields_.member(entry, "id", path), kMaxTokens, path + ".id");
    token.content = fields_.string_member(entry, "content", path);
    token.special = fields_.bool_member(entry, "special", path);
    token.normalized = fields_.bool_member(entry, "normalized", path);
    token.lstrip = fields_.bool_member(entry, "lstrip", path);
    token.rstrip = fields_.bool_member(entry, "rstrip", path);
    token.single_word = fields_.bool_member(entry, "single_word", path);
    if (token.content.empty()) fields_.fail(path + ".content", "is empty");
    const auto known = out_.ids.find(token.content);
    if (known == out_.ids.end()) {
      set_token(token.id, token.content, path + ".id");
    } else if (known->second != token.id) {
      fields_.fail(path + ".id",
                   fmt::format("is {}, but {} has id {} already", token.id, quoted(token.content), known->second));
    }
    // The library decodes them as the normalizer spells them.
    if (token.normalized) {
      if (std::string bytes = spelled(normalizer.apply(token.content)); !bytes.empty()) {
        out_.token_bytes[token.id] = std::move(bytes);
      }
    }
    if (is_added_.size() < out_.token_bytes.size()) is_added_.resize(out_.token_bytes.size());
    if (is_added_[token.id]) fields_.fail(path, fmt::format("token {} is listed twice", quoted(token.content)));
    is_added_[token.id] = true;
    out_.added.push_back(std::move(token));
  }
  is_added_.resize(out_.token_bytes.size());
  out_.special.resize(out_.token_bytes.size());
  for (const AddedToken& token : out_.added) {
    out_.special[token.id] = token.special;
    // As for merges: a character of untrusted text is never a control token.
    size_t end = 0;
    const char32_t c = next_code_point(token.content, end);
    auto& char_ids = out_.model.char_ids;
    if (token.special && end == token.content.size() && c < char_ids.size()) char_ids[c] = -1;
  }
}

void Reader::add_merge(const std::string& left, const std::string& right, const std::string& path) {
  const auto rank = static_cast<int32_t>(out_.model.merges.size());
  const BpeMerge merge = {known_token(left, path), known_token(right, path), known_token(left + right, path), rank};
  // An added token is never put together from text: in a whole text the library has cut it out before merges are tried,
  // and from untrusted text it must not come at all.
  if (is_added_[merge.merged]) return;
  out_.model.merges.push_back(merge);
  static const std::string word_start = utf8_of(kWordStart);
  if (right.starts_with(word_start) && !left.ends_with(word_start)) words_merge_apart_ = false;
}

void Reader::read_merges(const json& merges) {
  out_.model.merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::string path = fmt::format("model.merges[{}]", i);
    const json& merge = merges[i];
    if (merge.type() != merges[0].type()) fields_.fail(path, "has another form than the merges before it");
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      add_merge(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>(), path);
    } else if (merge.is_string()) {
      const std::string& line = merge.get_ref<const std::string&>();
      if (line.starts_with("#version")) continue;
      const size_t space = line.find(' ');
      if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        fields_.fail(path, fmt::format("is {}, expected two tokens and one space between them", quoted(line)));
      }
      add_merge(line.substr(0, space), line.substr(space + 1), path);
    } else {
      fields_.fail(path, "expected \"left right\" or [\"left\", \"right\"]");
    }
  }
}

void Reader::collect_whole_pieces() {
  for (const auto& [content, id] : out_.ids) {
    if (is_added_[id]) continue;  // as in add_merge
    auto bytes = byte_level_ ? spelled_bytes(content) : std::optional(content);
    if (bytes) out_.model.whole_pieces.emplace(std::move(*bytes), id);
  }
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::filesystem::path& file) {
  return Reader(file).read();
}

}  // namespace moectl
