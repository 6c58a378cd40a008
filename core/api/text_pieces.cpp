#include "core/api/text_pieces.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace moectl::api {

void TextPieces::add(std::string_view text) {
  if (parts_.empty() || parts_.back().make) parts_.emplace_back();
  parts_.back().text.append(text);
}

void TextPieces::add(std::function<void(std::string&)> part) {
  parts_.push_back({.make = std::move(part)});
}

void TextPieces::add_list(size_t count, size_t per_run, std::function<void(std::string& out, size_t index)> part) {
  const auto shared = std::make_shared<const std::function<void(std::string&, size_t)>>(std::move(part));
  for (size_t begin = 0; begin < count; begin += per_run)
    add([shared, begin, end = std::min(count, begin + per_run)](std::string& out) {
      for (size_t i = begin; i < end; ++i) {
        if (i > 0) out += ',';
        (*shared)(out, i);
      }
    });
}

std::string TextPieces::next() {
  std::string piece;
  while (next_ < parts_.size() && piece.size() < kPieceBytes) {
    Part part = std::exchange(parts_[next_++], {});
    if (part.make)
      part.make(piece);
    else if (piece.empty())
      piece = std::move(part.text);
    else
      piece += part.text;
  }
  return piece;
}

std::string TextPieces::all() {
  std::string text;
  while (next_ < parts_.size()) text += next();
  return text;
}

}  // namespace moectl::api
