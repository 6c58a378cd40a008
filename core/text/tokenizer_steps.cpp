#include "core/text/tokenizer_steps.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <tuple>

#include "core/base/error.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

using nlohmann::json;

constexpr size_t kMaxSteps = 64;        // of a Sequence, all levels together
constexpr size_t kMaxAffixBytes = 256;  // of what Prepend, Replace and Metaspace put in

// {"String": ...} or {"Regex": ...}; returns which.
std::pair<std::string, const std::string*> read_pattern(const JsonFields& fields, const json& step,
                                                        const std::string& path) {
  const json& pattern = fields.expect_object(fields.member(step, "pattern", path), path + ".pattern");
  if (pattern.size() == 1) {
    for (const char* kind : {"String", "Regex"}) {
      if (pattern.contains(kind)) return {kind, &fields.string_member(pattern, kind, path + ".pattern")};
    }
  }
  fields.fail(path + ".pattern", "expected one of {\"Regex\": ...} and {\"String\": ...}");
}

const std::string& short_string(const JsonFields& fields, const json& step, const char* key, const std::string& path) {
  const std::string& text = fields.string_member(step, key, path);
  if (text.size() > kMaxAffixBytes) {
    fields.fail(path + "." + key, fmt::format("has {} bytes, expected at most {}", text.size(), kMaxAffixBytes));
  }
  return text;
}

// A Replace of one exact text by another, as normalizers and decoders have it.
std::pair<std::string, std::string> read_replace(const JsonFields& fields, const json& step, const std::string& path) {
  fields.expect_keys(step, {"type", "pattern", "content"}, path);
  const auto [kind, pattern] = read_pattern(fields, step, path);
  if (kind != "String") fields.fail(path + ".pattern", "a Regex is not supported here, only a String");
  if (pattern->empty() || pattern->size() > kMaxAffixBytes) {
    fields.fail(path + ".pattern.String",
                fmt::format("has {} bytes, expected 1 to {}", pattern->size(), kMaxAffixBytes));
  }
  return {*pattern, short_string(fields, step, "content", path)};
}

// Calls `read(step, path)` for every step of nested Sequences, whose steps are under `key`.
template <class Read>
void for_each_step(const JsonFields& fields, const json& step, const char* key, const std::string& path, size_t& count,
                   const Read& read) {
  const std::string& type = fields.string_member(fields.expect_object(step, path), "type", path);
  if (++count > kMaxSteps) fields.fail(path, fmt::format("is one step too many, expected at most {}", kMaxSteps));
  if (type != "Sequence") return read(step, type, path);
  const json& steps = fields.array_member(step, key, path);
  for (size_t i = 0; i < steps.size(); ++i) {
    for_each_step(fields, steps[i], key, fmt::format("{}.{}[{}]", path, key, i), count, read);
  }
}

// ---------------------------------------------------------------------------------------------- pre-tokenizer

class PreTokenizerReader {
 public:
  explicit PreTokenizerReader(const JsonFields& fields) : fields_(fields) {}

  PreTokenizerSection read(const json& section) {
    if (section.is_null()) return {};
    size_t count = 0;
    for_each_step(fields_, section, "pretokenizers", "pre_tokenizer", count,
                  [&](const json& step, const std::string& type, const std::string& path) { add(step, type, path); });
    return std::move(out_);
  }

 private:
  void add(const json& step, const std::string& type, const std::string& path) {
    if (out_.byte_level) {
      fields_.fail(path,
                   fmt::format("{} stands after ByteLevel, which must be the last step", JsonFields::quoted(type)));
    }
    if (type == "Split") {
      add_split(step, path);
    } else if (type == "Digits") {
      fields_.expect_keys(step, {"type", "individual_digits"}, path);
      const bool individual = fields_.bool_member(step, "individual_digits", path);
      add_regex("\\p{N}", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, false, path);
    } else if (type == "ByteLevel") {
      if (out_.steps.metaspace) fields_.fail(path, "stands after Metaspace; a tokenizer is one or the other");
      fields_.expect_keys(step, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, path);
      out_.byte_level = true;
      out_.steps.add_prefix_space = fields_.bool_member(step, "add_prefix_space", path);
      if (fields_.bool_or(step, "use_regex", true, path)) {
        add_regex(kByteLevelPattern, SplitBehavior::kIsolated, false, path);
        out_.steps.num_splits_after_prefix = 1;
      }
    } else if (type == "Metaspace") {
      add_metaspace(step, path);
    } else {
      fields_.fail(path + ".type",
                   fmt::format("{} is not supported; known: Sequence, Split, Digits, ByteLevel, Metaspace",
                               JsonFields::quoted(type)));
    }
  }

  void add_regex(std::string_view pattern, SplitBehavior behavior, bool invert, const std::string& path) {
    SplitStep step;
    step.regex.emplace(pattern, fields_.file() + ": " + path);
    step.behavior = behavior;
    step.invert = invert;
    out_.steps.splits.push_back(std::move(step));
  }

  void add_split(const json& step, const std::string& path) {
    constexpr std::pair<const char*, SplitBehavior> kBehaviors[] = {
        {"Isolated", SplitBehavior::kIsolated},
        {"Removed", SplitBehavior::kRemoved},
        {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
        {"MergedWithNext", SplitBehavior::kMergedWithNext},
        {"Contiguous", SplitBehavior::kContiguous}};
    fields_.expect_keys(step, {"type", "pattern", "behavior", "invert"}, path);
    const std::string& name = fields_.string_member(step, "behavior", path);
    const auto* behavior =
        std::find_if(std::begin(kBehaviors), std::end(kBehaviors), [&](auto& b) { return b.first == name; });
    if (behavior == std::end(kBehaviors)) {
      fields_.fail(path + ".behavior", fmt::format("{} is not supported; known: Isolated, Removed, MergedWithPrevious, "
                                                   "MergedWithNext, Contiguous",
                                                   JsonFields::quoted(name)));
    }
    const bool invert = fields_.bool_member(step, "invert", path);
    const auto [kind, pattern] = read_pattern(fields_, step, path);
    if (kind == "Regex") return add_regex(*pattern, behavior->second, invert, path + ".pattern");
    if (pattern->empty()) fields_.fail(path + ".pattern.String", "is empty");
    SplitStep split;
    split.literal = *pattern;
    split.behavior = behavior->second;
    split.invert = invert;
    out_.steps.splits.push_back(std::move(split));
  }

  void add_metaspace(const json& step, const std::string& path) {
    fields_.expect_keys(step, {"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"}, path);
    if (out_.steps.metaspace || !out_.steps.splits.empty()) {
      fields_.fail(path, "stands after another step; Metaspace must be the first");
    }
    Metaspace metaspace;
    metaspace.replacement = short_string(fields_, step, "replacement", path);
    size_t end = 0;
    if (!metaspace.replacement.empty()) next_code_point(metaspace.replacement, end);
    if (end == 0 || end != metaspace.replacement.size()) {
      fields_.fail(path + ".replacement",
                   fmt::format("is {}, expected one character", JsonFields::quoted(metaspace.replacement)));
    }
    const std::string scheme =
        step.contains("prepend_scheme") ? fields_.string_member(step, "prepend_scheme", path) : "always";
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      fields_.fail(path + ".prepend_scheme",
                   fmt::format("is {}, expected always, first or never", JsonFields::quoted(scheme)));
    }
    const bool prepend = fields_.bool_or(step, "add_prefix_space", true, path) && scheme != "never";
    metaspace.prepend = !prepend            ? Metaspace::Prepend::kNever
                        : scheme == "first" ? Metaspace::Prepend::kFirst
                                            : Metaspace::Prepend::kAlways;
    if (fields_.bool_or(step, "split", true, path)) {
      SplitStep split;
      split.literal = metaspace.replacement;
      split.behavior = SplitBehavior::kMergedWithNext;
      out_.steps.splits.push_back(std::move(split));
    }
    out_.steps.metaspace = std::move(metaspace);
  }

  const JsonFields& fields_;
  PreTokenizerSection out_;
};

// ---------------------------------------------------------------------------------------------- post-processor

SpecialTokens read_template(const JsonFields& fields, const json& step, int64_t vocab_size, const std::string& path) {
  SpecialTokens out;
  const json& single = fields.array_member(step, "single", path);
  if (single.size() > kMaxSteps) {
    fields.fail(path + ".single", fmt::format("has {} entries, expected at most {}", single.size(), kMaxSteps));
  }
  bool after_text = false;
  for (size_t i = 0; i < single.size(); ++i) {
    const std::string at = fmt::format("{}.single[{}]", path, i);
    const json& entry = fields.expect_object(single[i], at);
    if (entry.contains("Sequence")) {
      const json& sequence = fields.expect_object(entry["Sequence"], at + ".Sequence");
      if (after_text || fields.string_member(sequence, "id", at + ".Sequence") != "A") {
        fields.fail(at, "expected the text, {\"Sequence\": {\"id\": \"A\"}}, once");
      }
      after_text = true;
      continue;
    }
    const json& token = fields.expect_object(fields.member(entry, "SpecialToken", at), at + ".SpecialToken");
    const std::string& name = fields.string_member(token, "id", at + ".SpecialToken");
    const json& known = fields.expect_object(fields.member(step, "special_tokens", path), path + ".special_tokens");
    const std::string of = path + ".special_tokens[" + JsonFields::quoted(name) + "]";
    if (!known.contains(name)) fields.fail(of, fmt::format("is missing, but {} names it", at));
    const json& ids = fields.array_member(fields.expect_object(known[name], of), "ids", of);
    for (const json& id : ids) (after_text ? out.after : out.before).push_back(fields.id(id, vocab_size, of + ".ids"));
  }
  if (!after_text) fields.fail(path + ".single", "does not hold the text, {\"Sequence\": {\"id\": \"A\"}}");
  return out;
}

}  // namespace

std::vector<NormalizerStep> read_normalizer(const JsonFields& fields, const json& normalizer) {
  std::vector<NormalizerStep> out;
  if (normalizer.is_null()) return out;
  size_t count = 0;
  const auto add = [&](const json& step, const std::string& type, const std::string& path) {
    if (type == "NFC") {
      out.push_back({.kind = NormalizerStep::Kind::kNfc});
    } else if (type == "Prepend") {
      fields.expect_keys(step, {"type", "prepend"}, path);
      const std::string& content = short_string(fields, step, "prepend", path);
      out.push_back({.kind = NormalizerStep::Kind::kPrepend, .content = content});
    } else if (type == "Replace") {
      auto [pattern, content] = read_replace(fields, step, path);
      out.push_back({.kind = NormalizerStep::Kind::kReplace, .pattern = pattern, .content = content});
    } else {
      fields.fail(path + ".type",
                  fmt::format("{} is not supported; known: NFC, Prepend, Replace, Sequence", JsonFields::quoted(type)));
    }
  };
  for_each_step(fields, normalizer, "normalizers", "normalizer", count, add);
  return out;
}

PreTokenizerSection read_pre_tokenizer(const JsonFields& fields, const json& pre_tokenizer) {
  return PreTokenizerReader(fields).read(pre_tokenizer);
}

SpecialTokens read_post_processor(const JsonFields& fields, const json& post_processor, int64_t vocab_size) {
  SpecialTokens out;
  if (post_processor.is_null()) return out;
  size_t count = 0;
  bool has_template = false;
  const auto add = [&](const json& step, const std::string& type, const std::string& path) {
    if (type == "ByteLevel") return;  // concerns offsets only
    if (type != "TemplateProcessing") {
      fields.fail(path + ".type", fmt::format("{} is not supported; known: TemplateProcessing, ByteLevel, Sequence",
                                              JsonFields::quoted(type)));
    }
    if (std::exchange(has_template, true)) fields.fail(path, "is the second TemplateProcessing, expected one");
    out = read_template(fields, step, vocab_size, path);
  };
  for_each_step(fields, post_processor, "processors", "post_processor", count, add);
  return out;
}

DecodeRules read_decoder(const JsonFields& fields, const json& decoder, bool byte_level) {
  DecodeRules out;
  size_t count = 0;
  std::string order;  // of the steps, one letter each
  const auto add = [&](const json& step, const std::string& type, const std::string& path) {
    if (type == "ByteLevel") {
      order += 'L';
    } else if (type == "Replace") {
      order += 'R';
      std::tie(out.pattern, out.content) = read_replace(fields, step, path);
    } else if (type == "ByteFallback") {
      order += 'B';
      out.byte_fallback = true;
    } else if (type == "Fuse") {
      order += 'F';
    } else if (type == "Strip") {
      order += 'S';
      if (fields.string_member(step, "content", path) != " " || fields.int_or(step, "stop", 0, 1 << 20, path) != 0) {
        fields.fail(path, "only spaces at the start can be stripped: content \" \", stop 0");
      }
      out.strip_left = static_cast<size_t>(fields.int_or(step, "start", 0, 1 << 20, path));
    } else {
      fields.fail(path + ".type",
                  fmt::format("{} is not supported; known: {}", JsonFields::quoted(type),
                              byte_level ? "ByteLevel" : "Sequence of Replace, ByteFallback, Fuse, Strip"));
    }
  };
  for_each_step(fields, decoder, "decoders", "decoder", count, add);
  constexpr std::string_view kTextOrders[] = {"", "R", "RB", "RBF", "RBFS", "RF", "RFS", "B", "BF", "F"};
  const bool known = byte_level
                         ? order == "L"
                         : std::find(std::begin(kTextOrders), std::end(kTextOrders), order) != std::end(kTextOrders);
  if (!known) {
    fields.fail("decoder",
                byte_level ? "expected one ByteLevel, as the pre-tokenizer has"
                           : "expected Replace, ByteFallback, Fuse and Strip, in this order, or ByteLevel where the "
                             "pre_tokenizer is ByteLevel");
  }
  return out;
}

}  // namespace moectl
