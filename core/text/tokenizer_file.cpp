#include "core/text/tokenizer_file.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/error.h"
#include "core/base/json_depth.h"
#include "core/text/normalizer.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

using nlohmann::json;

constexpr int kMaxJsonDepth = 64;
constexpr uintmax_t kMaxFileBytes = 256u << 20;
constexpr int64_t kMaxTokens = 2 << 20;  // ids are below this: tables by id stay small whatever the file says

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

bool occurs_in_utf8(int b) {
  return b != 0xc0 && b != 0xc1 && b < 0xf5;
}

class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : file_(file.string()) {}
  TokenizerFile read();

 private:
  [[noreturn]] void fail(const std::string& field, const std::string& what) const {
    throw Error(Code::kBadData, fmt::format("{}: {}: {}", file_, field, what));
  }
  static std::string quoted(const std::string& text) { return '"' + text.substr(0, 200) + '"'; }

  // Typed access to `object[key]`; `path` names the object.
  const json& member(const json& object, const char* key, const std::string& path) const {
    const auto found = object.find(key);
    if (found == object.end()) fail(path, fmt::format("\"{}\" is missing", key));
    return *found;
  }
  const json& expect_object(const json& value, const std::string& path) const {
    if (!value.is_object()) fail(path, fmt::format("is a JSON {}, expected an object", value.type_name()));
    return value;
  }
  const json& array_member(const json& object, const char* key, const std::string& path) const {
    const json& value = member(object, key, path);
    if (!value.is_array()) fail(path + "." + key, fmt::format("is a JSON {}, expected an array", value.type_name()));
    return value;
  }
  const std::string& string_member(const json& object, const char* key, const std::string& path) const {
    const json& value = member(object, key, path);
    if (!value.is_string()) fail(path + "." + key, fmt::format("is a JSON {}, expected a string", value.type_name()));
    return value.get_ref<const std::string&>();
  }
  bool bool_member(const json& object, const char* key, const std::string& path) const {
    const json& value = member(object, key, path);
    if (!value.is_boolean())
      fail(path + "." + key, fmt::format("is a JSON {}, expected true or false", value.type_name()));
    return value.get<bool>();
  }
  bool bool_or(const json& object, const char* key, bool otherwise, const std::string& path) const {
    return object.contains(key) && !object[key].is_null() ? bool_member(object, key, path) : otherwise;
  }
  int32_t token_id(const json& value, const std::string& path) const;
  int32_t known_token(const std::string& content, const std::string& path) const;

  json parse() const;
  void read_model(const json& model);
  void read_vocab(const json& vocab);
  void set_token(int32_t id, const std::string& content, const std::string& path);
  void read_merges(const json& merges);
  void add_merge(const std::string& left, const std::string& right, const std::string& path);
  void read_added_tokens(const json& added);
  void read_normalizer(const json& normalizer, const std::string& path);
  void read_pre_tokenizer(const json& step, const std::string& path);
  void read_split(const json& step, const std::string& path);
  void add_regex(std::string_view pattern, SplitBehavior behavior, bool invert, const std::string& path);
  void read_decoder(const json& decoder, const std::string& path) const;
  void collect_whole_pieces();

  std::string file_;
  TokenizerFile out_;
  std::vector<bool> is_added_;  // by id
  bool ignore_merges_ = false;
  bool byte_level_ = false;  // the ByteLevel pre-tokenizer was met
};

json Reader::parse() const {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(file_, error);
  if (error) {
    throw Error(Code::kBadData, fmt::format("{}: cannot be read ({}); a checkpoint's folder holds a tokenizer.json",
                                            file_, error.message()));
  }
  if (size > kMaxFileBytes) {
    throw Error(Code::kBadData, fmt::format("{}: {} bytes, expected at most {}", file_, size, kMaxFileBytes));
  }
  std::ifstream stream(file_, std::ios::binary);
  std::string text(size, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(size))) {
    throw Error(Code::kBadData, fmt::format("{}: reading its {} bytes failed", file_, size));
  }
  check_json_depth(text, kMaxJsonDepth, file_);
  try {
    return json::parse(text);
  } catch (const json::exception& e) {
    throw Error(Code::kBadData, fmt::format("{}: is not valid JSON: {}", file_, e.what()));
  }
}

TokenizerFile Reader::read() {
  const json root = parse();
  expect_object(root, "the document");
  const auto section = [&](const char* key) { return root.contains(key) ? root[key] : json(); };
  read_model(expect_object(member(root, "model", "the document"), "model"));
  read_normalizer(section("normalizer"), "normalizer");  // before the added tokens, which it must leave as they are
  read_added_tokens(section("added_tokens"));
  read_merges(array_member(root["model"], "merges", "model"));
  read_pre_tokenizer(section("pre_tokenizer"), "pre_tokenizer");
  if (!byte_level_) fail("pre_tokenizer", "has no ByteLevel step; only byte-level BPE is supported");
  read_decoder(section("decoder"), "decoder");
  if (ignore_merges_) collect_whole_pieces();
  // "truncation", "padding" and "post_processor" concern callers that ask for special tokens and batches; prompts here
  // are rendered by the chat template and never cut silently.
  return std::move(out_);
}

int32_t Reader::token_id(const json& value, const std::string& path) const {
  if (!value.is_number_integer()) fail(path, fmt::format("is {}, expected a token id", value.dump().substr(0, 50)));
  if (value.is_number_unsigned() ? value.get<uint64_t>() >= static_cast<uint64_t>(kMaxTokens)
                                 : value.get<int64_t>() < 0) {
    fail(path, fmt::format("is {}, expected a token id from 0 to {}", value.dump(), kMaxTokens - 1));
  }
  return value.get<int32_t>();
}

int32_t Reader::known_token(const std::string& content, const std::string& path) const {
  const auto found = out_.ids.find(content);
  if (found == out_.ids.end()) fail(path, fmt::format("names {}, which the vocabulary does not have", quoted(content)));
  return found->second;
}

void Reader::set_token(int32_t id, const std::string& content, const std::string& path) {
  const auto index = static_cast<size_t>(id);
  if (index >= out_.token_bytes.size()) out_.token_bytes.resize(index + 1);
  if (!out_.token_bytes[index].empty()) fail(path, fmt::format("id {} belongs to another token already", id));
  out_.token_bytes[index] = spelled_bytes(content).value_or(content);  // as the ByteLevel decoder does
  out_.ids.emplace(content, id);
}

void Reader::read_model(const json& model) {
  const std::string& type = string_member(model, "type", "model");
  if (type != "BPE") fail("model.type", fmt::format("is {}, only \"BPE\" is supported", quoted(type)));
  if (model.contains("dropout") && !model["dropout"].is_null() && model["dropout"] != 0.0) {
    fail("model.dropout", "is set; only tokenizers without dropout are supported");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.contains(key) && !model[key].is_null() && model[key] != "") {
      fail(fmt::format("model.{}", key), "is set; byte-level BPE has none");
    }
  }
  if (model.contains("unk_token") && !model["unk_token"].is_null()) {
    (void)string_member(model, "unk_token", "model");  // never used: every byte has a token
  }
  if (bool_or(model, "byte_fallback", false, "model")) fail("model.byte_fallback", "is true; it is not supported");
  (void)bool_or(model, "fuse_unk", false, "model");
  ignore_merges_ = bool_or(model, "ignore_merges", false, "model");
  read_vocab(expect_object(member(model, "vocab", "model"), "model.vocab"));
}

void Reader::read_vocab(const json& vocab) {
  out_.ids.reserve(vocab.size());
  for (const auto& [content, id] : vocab.items()) {
    const std::string path = "model.vocab[" + quoted(content) + "]";
    if (content.empty()) fail(path, "is an empty token");
    set_token(token_id(id, path), content, path);
  }
  for (int b = 0; b < 256; ++b) {
    std::string character;
    append_code_point(character, byte_alphabet().character[b]);
    const auto found = out_.ids.find(character);
    out_.byte_ids[b] = found == out_.ids.end() ? -1 : found->second;
    if (out_.byte_ids[b] < 0 && occurs_in_utf8(b)) {
      fail("model.vocab", fmt::format("has no token {} for byte 0x{:02x}; byte-level BPE needs one for every byte",
                                      quoted(character), b));
    }
  }
}

void Reader::read_added_tokens(const json& added) {
  if (!added.is_null() && !added.is_array()) {
    fail("added_tokens", fmt::format("is a JSON {}, expected an array", added.type_name()));
  }
  for (size_t i = 0; i < added.size(); ++i) {
    const std::string path = fmt::format("added_tokens[{}]", i);
    const json& entry = expect_object(added[i], path);
    AddedToken token;
    token.id = token_id(member(entry, "id", path), path + ".id");
    token.content = string_member(entry, "content", path);
    token.special = bool_member(entry, "special", path);
    token.normalized = bool_member(entry, "normalized", path);
    token.lstrip = bool_member(entry, "lstrip", path);
    token.rstrip = bool_member(entry, "rstrip", path);
    token.single_word = bool_member(entry, "single_word", path);
    if (token.content.empty()) fail(path + ".content", "is empty");
    if (token.normalized && out_.nfc && nfc(token.content) != token.content) {
      fail(path + ".content",
           fmt::format("{} is changed by the normalizer; this is not supported", quoted(token.content)));
    }
    const auto known = out_.ids.find(token.content);
    if (known == out_.ids.end()) {
      set_token(token.id, token.content, path + ".id");
    } else if (known->second != token.id) {
      fail(path + ".id",
           fmt::format("is {}, but {} has id {} already", token.id, quoted(token.content), known->second));
    }
    if (is_added_.size() < out_.token_bytes.size()) is_added_.resize(out_.token_bytes.size());
    if (is_added_[token.id]) fail(path, fmt::format("token {} is listed twice", quoted(token.content)));
    is_added_[token.id] = true;
    out_.added.push_back(std::move(token));
  }
  is_added_.resize(out_.token_bytes.size());
  out_.special.resize(out_.token_bytes.size());
  for (const AddedToken& token : out_.added) out_.special[token.id] = token.special;
}

void Reader::add_merge(const std::string& left, const std::string& right, const std::string& path) {
  const BpeMerge merge = {known_token(left, path), known_token(right, path), known_token(left + right, path)};
  // An added token is never put together from text: in a whole text the library has cut it out before merges are tried,
  // and from untrusted text it must not come at all.
  if (is_added_[merge.merged]) return;
  out_.merges.push_back(merge);
}

void Reader::read_merges(const json& merges) {
  out_.merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::string path = fmt::format("model.merges[{}]", i);
    const json& merge = merges[i];
    if (merge.type() != merges[0].type()) fail(path, "has another form than the merges before it");
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      add_merge(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>(), path);
    } else if (merge.is_string()) {
      const std::string& line = merge.get_ref<const std::string&>();
      if (line.starts_with("#version")) continue;
      const size_t space = line.find(' ');
      if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        fail(path, fmt::format("is {}, expected two tokens and one space between them", quoted(line)));
      }
      add_merge(line.substr(0, space), line.substr(space + 1), path);
    } else {
      fail(path, "expected \"left right\" or [\"left\", \"right\"]");
    }
  }
}

void Reader::read_normalizer(const json& normalizer, const std::string& path) {
  if (normalizer.is_null()) return;
  const std::string& type = string_member(expect_object(normalizer, path), "type", path);
  if (type == "NFC") {
    out_.nfc = true;
  } else if (type == "Sequence") {
    const json& steps = array_member(normalizer, "normalizers", path);
    for (size_t i = 0; i < steps.size(); ++i) read_normalizer(steps[i], fmt::format("{}.normalizers[{}]", path, i));
  } else {
    fail(path + ".type", fmt::format("{} is not supported; known: NFC, Sequence", quoted(type)));
  }
}

void Reader::add_regex(std::string_view pattern, SplitBehavior behavior, bool invert, const std::string& path) {
  SplitStep step;
  step.regex.emplace(pattern, file_ + ": " + path);
  step.behavior = behavior;
  step.invert = invert;
  out_.splits.push_back(std::move(step));
}

void Reader::read_pre_tokenizer(const json& step, const std::string& path) {
  if (step.is_null()) fail(path, "is missing; only byte-level BPE is supported");
  const std::string& type = string_member(expect_object(step, path), "type", path);
  if (byte_level_) fail(path, fmt::format("{} stands after ByteLevel, which must be the last step", quoted(type)));
  if (type == "Sequence") {
    const json& steps = array_member(step, "pretokenizers", path);
    for (size_t i = 0; i < steps.size(); ++i)
      read_pre_tokenizer(steps[i], fmt::format("{}.pretokenizers[{}]", path, i));
  } else if (type == "Split") {
    read_split(step, path);
  } else if (type == "Digits") {
    const bool individual = bool_member(step, "individual_digits", path);
    add_regex("\\p{N}", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, false, path);
  } else if (type == "ByteLevel") {
    byte_level_ = true;
    out_.add_prefix_space = bool_member(step, "add_prefix_space", path);
    if (bool_or(step, "use_regex", true, path)) {
      add_regex(kByteLevelPattern, SplitBehavior::kIsolated, false, path);
      out_.num_splits_after_prefix = 1;
    }
  } else {
    fail(path + ".type", fmt::format("{} is not supported; known: Sequence, Split, Digits, ByteLevel", quoted(type)));
  }
}

void Reader::read_split(const json& step, const std::string& path) {
  constexpr std::pair<const char*, SplitBehavior> kBehaviors[] = {
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  const std::string& name = string_member(step, "behavior", path);
  const auto* behavior =
      std::find_if(std::begin(kBehaviors), std::end(kBehaviors), [&](auto& b) { return b.first == name; });
  if (behavior == std::end(kBehaviors)) {
    fail(path + ".behavior",
         fmt::format("{} is not supported; known: Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous",
                     quoted(name)));
  }
  const bool invert = bool_member(step, "invert", path);
  const json& pattern = expect_object(member(step, "pattern", path), path + ".pattern");
  if (pattern.size() != 1) fail(path + ".pattern", "expected one of {\"Regex\": ...} and {\"String\": ...}");
  if (pattern.contains("Regex")) {
    add_regex(string_member(pattern, "Regex", path + ".pattern"), behavior->second, invert, path + ".pattern");
    return;
  }
  SplitStep split;
  split.literal = string_member(pattern, "String", path + ".pattern");
  if (split.literal.empty()) fail(path + ".pattern.String", "is empty");
  split.behavior = behavior->second;
  split.invert = invert;
  out_.splits.push_back(std::move(split));
}

void Reader::read_decoder(const json& decoder, const std::string& path) const {
  const std::string& type = string_member(expect_object(decoder, path), "type", path);
  if (type == "Sequence") {
    const json& steps = array_member(decoder, "decoders", path);
    if (steps.size() == 1) return read_decoder(steps[0], path + ".decoders[0]");
    fail(path + ".decoders", fmt::format("has {} steps, only one ByteLevel is supported", steps.size()));
  }
  if (type != "ByteLevel") fail(path + ".type", fmt::format("{} is not supported; known: ByteLevel", quoted(type)));
}

void Reader::collect_whole_pieces() {
  for (const auto& [content, id] : out_.ids) {
    if (is_added_[id]) continue;  // as in add_merge
    if (auto bytes = spelled_bytes(content)) out_.whole_pieces.emplace(std::move(*bytes), id);
  }
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::filesystem::path& file) {
  return Reader(file).read();
}

}  // namespace moectl
