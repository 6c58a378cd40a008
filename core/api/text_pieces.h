// TextPieces: a text that is too long to be built at once. Its parts are kept as functions and become text when their
// piece is asked for, so that memory holds one piece, and who builds it is busy for one piece. One thread at a time.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace moectl::api {

inline constexpr size_t kPieceBytes = 256u << 10;

class TextPieces {
 public:
  void add(std::string_view text);
  // Appends its part to what it is given, far less than a piece each. What it refers to must outlive the pieces.
  void add(std::function<void(std::string&)> part);
  // `count` parts with a comma between two, `per_run` of them in one function call.
  void add_list(size_t count, size_t per_run, std::function<void(std::string& out, size_t index)> part);

  // The next kPieceBytes or a little more; empty at the end.
  std::string next();
  std::string all();  // the rest as one text

 private:
  struct Part {
    std::string text;                        // this, when there is no function
    std::function<void(std::string&)> make;  // else what this appends
  };
  std::vector<Part> parts_;
  size_t next_ = 0;
};

}  // namespace moectl::api
