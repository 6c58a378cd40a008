#include "core/api/loggable.h"

#include <algorithm>
#include <cctype>

namespace moectl::api {
namespace {

constexpr size_t kMaxNameBytes = 64;
constexpr std::string_view kLeftOut = "...";

// "messages[0].content", "org/model"
bool is_name(std::string_view text) {
  return text.size() <= kMaxNameBytes && std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return c < 0x80 && (std::isalnum(c) || std::string_view("_.-[]:/").find(char(c)) != std::string_view::npos);
         });
}

bool is_letter(std::string_view text, size_t i) {
  return i < text.size() && std::isalpha(static_cast<unsigned char>(text[i]));
}

// An apostrophe stands between two letters.
bool is_quotation_mark(std::string_view text, size_t i) {
  return text[i] == '"' || (text[i] == '\'' && !(i > 0 && is_letter(text, i - 1) && is_letter(text, i + 1)));
}

// A value may hold quotation marks, so all from the first to the last mark of a kind is left out.
std::string without_quotations(std::string_view text) {
  std::string out;
  for (;;) {
    size_t begin = 0;
    while (begin < text.size() && !is_quotation_mark(text, begin)) ++begin;
    out += text.substr(0, begin);
    if (begin == text.size()) return out;
    size_t end = text.size() - 1;
    while (end > begin && !(text[end] == text[begin] && is_quotation_mark(text, end))) --end;
    out += kLeftOut;
    text.remove_prefix(end > begin ? end + 1 : text.size());
  }
}

std::string without_unknown_names(std::string_view text) {
  std::string out;
  for (size_t begin; (begin = text.find('`')) != std::string_view::npos;) {
    const size_t end = text.find('`', begin + 1);
    const std::string_view name = text.substr(begin + 1, end == std::string_view::npos ? end : end - begin - 1);
    out += text.substr(0, begin + 1);
    out += is_name(name) ? name : kLeftOut;
    out += '`';
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return out += text;
}

}  // namespace

std::string loggable(std::string_view message) {
  if (const size_t at = message.find(kTemplateReports); at != std::string_view::npos)
    message = message.substr(0, at + kTemplateReports.size() - 2);
  std::string text = without_unknown_names(without_quotations(message));
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  if (text.size() > kMaxLoggedBytes) text.replace(kMaxLoggedBytes - kLeftOut.size(), std::string::npos, kLeftOut);
  return text;
}

LoggedError loggable(const ApiError& error) {
  if (is_name(error.param)) return {loggable(error.message), error.param};
  return {"a field of the request is wrong; its name is not shown", ""};
}

}  // namespace moectl::api
