// AddedTokens: finds the added tokens of tokenizer.json in a text, as the `tokenizers` library does (leftmost, longest;
// lstrip, rstrip, single_word). Immutable after construction; any thread. It knows nothing of pieces between them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moectl {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      // skipped by decode(skip_special)
  bool normalized = false;   // looked for after the normalizer, else before
  bool lstrip = false;       // takes the white space on its left
  bool rstrip = false;       // takes the white space on its right
  bool single_word = false;  // not beside a word character
};

// A part of a text: one added token, or (id -1) what lies between two.
struct TextPart {
  int32_t id;
  size_t begin, end;
};

// A run of text that may, or may not, hold added tokens. Runs are adjacent and cover the text.
struct TrustRun {
  size_t end;
  bool trusted;
};

class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);
  bool empty() const { return tokens_.empty(); }

  // Parts of `text` in order. A token counts only where all of its content lies in one trusted run.
  // With rstrip a part may begin before the end of the one before it, as in the library.
  std::vector<TextPart> split(std::string_view text, const std::vector<TrustRun>& runs) const;

 private:
  struct Node {
    int32_t first_child = -1, next_sibling = -1;
    int32_t token = -1;  // index into tokens_
    uint8_t byte = 0;
  };
  // Longest token at `pos` that ends at or before `limit`; -1 when there is none.
  int32_t longest_at(std::string_view text, size_t pos, size_t limit) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<int32_t, 256> roots_;
};

}  // namespace moectl
