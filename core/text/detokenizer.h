// Detokenizer: token ids of one answer -> text that may be shown now. Holds back incomplete UTF-8 and anything that may
// become a stop string. One object a stream; one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/text/tokenizer.h"

namespace moectl {

class Detokenizer {
 public:
  struct Options {
    std::vector<std::string> stop;   // stop strings; empty strings are not allowed
    bool include_stop = false;       // keep the stop string in the text
    bool skip_special = true;        // special tokens give no text
  };
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, Options options);

  // Adds one token; returns the text that is now certain. After a stop string was found, `stopped()` is true and further
  // pushes return nothing.
  std::string push(int32_t id);
  // End of the answer: everything held back; incomplete UTF-8 becomes U+FFFD.
  std::string finish();
  bool stopped() const { return stopped_; }
  const std::string& stop_string() const { return stop_string_; }  // the one that was found

 private:
  std::string release(bool final);

  std::shared_ptr<const Tokenizer> tokenizer_;
  Options options_;
  std::string pending_;  // bytes not yet released
  bool stopped_ = false;
  std::string stop_string_;
};

}  // namespace moectl
