// Detokenizer: token ids of one answer -> text that may be shown now. Holds back incomplete UTF-8 and anything that may
// become a stop string. One object a stream; one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/token_text.h"
#include "core/text/tokenizer.h"

namespace moectl {

class Detokenizer {
 public:
  struct Options {
    std::vector<std::string> stop;  // stop strings; not empty, valid UTF-8
    bool include_stop = false;      // keep the stop string in the text
    bool skip_special = true;       // special tokens give no text
    // The answer continues a text: a space at its start stays, though the decoder takes it from the start of a text.
    bool continues_text = false;
  };
  // Throws Error{kInvalidArgument, param "stop"} for a stop string that is empty or not UTF-8.
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, Options options);

  // Adds one token; returns the text that is now certain. After a stop string was found, `stopped()` is true and
  // further pushes return nothing.
  std::string push(int32_t id);
  // End of the answer, or a place that no stop string spans: everything held back; incomplete UTF-8 becomes U+FFFD.
  std::string finish();
  bool stopped() const { return stopped_; }
  const std::string& stop_string() const { return stop_string_; }  // the one that was found

 private:
  // One stop string and how much of it the text ends with (Knuth-Morris-Pratt: linear however it repeats itself).
  struct Stop {
    std::string text;
    std::vector<size_t> fallback;  // [i]: longest proper prefix of text that ends text[0, i]
    size_t matched = 0;
  };
  // What of pending_ is certain; from `first_new` on it has not been searched for stop strings.
  std::string release(size_t first_new, bool final);

  std::shared_ptr<const Tokenizer> tokenizer_;
  Options options_;
  std::vector<Stop> stops_;
  TokenText text_;       // holds back bytes that are no whole characters yet
  std::string pending_;  // text that may turn out to be part of a stop string
  bool stopped_ = false;
  std::string stop_string_;
};

}  // namespace moectl
