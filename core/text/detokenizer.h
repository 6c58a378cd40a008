// Detokenizer: token ids of one answer -> text that may be shown now. Holds back incomplete UTF-8 and anything that may
// become a stop string. One object a stream; one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/tokenizer.h"

namespace moectl {

class Detokenizer {
 public:
  struct Options {
    std::vector<std::string> stop;  // stop strings; not empty, valid UTF-8
    bool include_stop = false;      // keep the stop string in the text
    bool skip_special = true;       // special tokens give no text
  };
  // Throws Error{kInvalidArgument, param "stop"} for a stop string that is empty or not UTF-8.
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, Options options);

  // Adds one token; returns the text that is now certain. After a stop string was found, `stopped()` is true and
  // further pushes return nothing.
  std::string push(int32_t id);
  // End of the answer: everything held back; incomplete UTF-8 becomes U+FFFD.
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
  std::string release(std::string_view bytes, bool final);

  std::shared_ptr<const Tokenizer> tokenizer_;
  Options options_;
  std::vector<Stop> stops_;
  std::string incomplete_;  // bytes of a character that is not whole yet, at most 3
  std::string pending_;     // text that may turn out to be part of a stop string
  bool stopped_ = false;
  std::string stop_string_;
};

}  // namespace moectl
