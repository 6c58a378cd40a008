#include "core/text/added_tokens.h"

#include <algorithm>

#include "core/text/utf8.h"

namespace moectl {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  roots_.fill(-1);
  for (size_t t = 0; t < tokens_.size(); ++t) {
    int32_t parent = -1;
    for (const char c : tokens_[t].content) {
      const auto byte = static_cast<uint8_t>(c);
      int32_t node = parent < 0 ? roots_[byte] : nodes_[parent].first_child;
      while (node >= 0 && nodes_[node].byte != byte) node = nodes_[node].next_sibling;
      if (node < 0) {
        node = static_cast<int32_t>(nodes_.size());
        nodes_.push_back({-1, parent < 0 ? -1 : nodes_[parent].first_child, -1, byte});
        (parent < 0 ? roots_[byte] : nodes_[parent].first_child) = node;
      }
      parent = node;
    }
    nodes_[parent].token = static_cast<int32_t>(t);
  }
}

int32_t AddedTokens::longest_at(std::string_view text, size_t pos, size_t limit) const {
  int32_t found = -1;
  int32_t node = roots_[static_cast<uint8_t>(text[pos])];
  while (node >= 0) {
    if (nodes_[node].token >= 0) found = nodes_[node].token;
    if (++pos >= limit) break;
    node = nodes_[node].first_child;
    while (node >= 0 && nodes_[node].byte != static_cast<uint8_t>(text[pos])) node = nodes_[node].next_sibling;
  }
  return found;
}

std::vector<TextPart> AddedTokens::split(std::string_view text, const std::vector<TrustRun>& runs) const {
  std::vector<TextPart> parts;
  size_t done = 0, pos = 0;  // end of the last part; where the search stands
  for (const TrustRun& run : runs) {
    if (!run.trusted) {
      pos = run.end;
      continue;
    }
    while (pos < run.end) {
      const int32_t index = longest_at(text, pos, run.end);
      if (index < 0) {
        ++pos;
        continue;
      }
      const AddedToken& token = tokens_[index];
      size_t begin = pos, end = pos + token.content.size();
      pos = end;
      if (token.single_word) {
        const bool joined_left = begin > 0 && is_word_character(previous_code_point(text, begin));
        size_t next = end;
        const bool joined_right = end < text.size() && is_word_character(next_code_point(text, next));
        if (joined_left || joined_right) continue;
      }
      if (token.lstrip) {
        while (begin > 0) {
          const char32_t c = previous_code_point(text, begin);
          if (!is_white_space(c)) break;
          do --begin;
          while ((static_cast<uint8_t>(text[begin]) & 0xc0) == 0x80);
        }
        begin = std::max(begin, done);  // the token before may have taken it
      }
      if (token.rstrip) {
        for (size_t next = end; next < text.size(); end = next) {
          if (!is_white_space(next_code_point(text, next))) break;
        }
      }
      if (done < begin) parts.push_back({-1, done, begin});
      parts.push_back({token.id, begin, end});
      done = end;
    }
  }
  if (done < text.size()) parts.push_back({-1, done, text.size()});
  return parts;
}

}  // namespace moectl
