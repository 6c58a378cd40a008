#include "core/text/detokenizer.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

std::vector<size_t> fallback_table(std::string_view text) {
  std::vector<size_t> fallback(text.size() + 1, 0);
  size_t length = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (length > 0 && text[i] != text[length]) length = fallback[length];
    if (text[i] == text[length]) ++length;
    fallback[i + 1] = length;
  }
  return fallback;
}

DecodeRules rules_of(const Tokenizer& tokenizer, const Detokenizer::Options& options) {
  DecodeRules rules = tokenizer.decode_rules();
  if (options.continues_text) rules.strip_left = 0;
  return rules;
}

}  // namespace

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, Options options)
    : tokenizer_(std::move(tokenizer)), options_(std::move(options)), text_(rules_of(*tokenizer_, options_)) {
  for (const std::string& stop : options_.stop) {
    if (stop.empty()) {
      throw Error(Code::kInvalidArgument, "a stop string is empty, expected at least one character", "stop");
    }
    if (!is_valid_utf8(stop)) throw Error(Code::kInvalidArgument, "a stop string is not valid UTF-8", "stop");
    stops_.push_back({stop, fallback_table(stop)});
  }
}

std::string Detokenizer::push(int32_t id) {
  if (stopped_ || (options_.skip_special && tokenizer_->is_special(id))) return {};
  const std::string_view bytes = tokenizer_->token_bytes(id);
  if (bytes.empty()) return {};
  const size_t first_new = pending_.size();
  text_.push(bytes, tokenizer_->is_byte(id), pending_);
  return release(first_new, false);
}

std::string Detokenizer::finish() {
  if (stopped_) return {};
  const size_t first_new = pending_.size();
  text_.finish(pending_);
  return release(first_new, true);
}

std::string Detokenizer::release(size_t first_new, bool final) {
  const Stop* found = nullptr;
  size_t found_at = 0, held = 0;
  for (Stop& stop : stops_) {
    size_t i = first_new;
    for (; i < pending_.size() && stop.matched < stop.text.size(); ++i) {
      while (stop.matched > 0 && pending_[i] != stop.text[stop.matched]) stop.matched = stop.fallback[stop.matched];
      if (pending_[i] == stop.text[stop.matched]) ++stop.matched;
    }
    held = std::max(held, stop.matched);
    if (stop.matched == stop.text.size() && (!found || i - stop.text.size() < found_at)) {
      found = &stop;
      found_at = i - stop.text.size();
    }
  }
  if (found) {
    stopped_ = true;
    stop_string_ = found->text;
    pending_.resize(found_at + (options_.include_stop ? found->text.size() : 0));
    return std::move(pending_);
  }
  if (final)
    for (Stop& stop : stops_) stop.matched = 0;
  std::string certain = pending_.substr(0, pending_.size() - (final ? 0 : held));
  pending_.erase(0, certain.size());
  return certain;
}

}  // namespace moectl
