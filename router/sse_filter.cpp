#include "router/sse_filter.h"

#include <algorithm>
#include <utility>

#include "core/api/cluster.h"
#include "core/api/openai_response.h"

namespace moectl::router {
namespace {
constexpr std::string_view kOwnComment = ": moectl", kErrorEvent = R"(data: {"error":)", kData = "data:";
}

void SseFilter::feed(std::string_view piece, std::string& out) {
  if (done_ || nonsense_) return;
  pending_.append(piece);
  size_t begin = 0;
  for (;;) {
    const size_t end = pending_.find("\n\n", std::max(begin, searched_));
    if (end == std::string::npos || done_) break;
    const std::string_view event = std::string_view(pending_).substr(begin, end - begin);
    if (std::exchange(passing_, false)) {
      out.append(event).append("\n\n");
    } else {
      on_event(event, out);
    }
    begin = searched_ = end + 2;
  }
  pending_.erase(0, begin);
  if (pending_.size() > kMaxWholeEvent || (passing_ && !pending_.empty())) pass_large(out);
  searched_ = pending_.empty() ? 0 : pending_.size() - 1;  // the first of two line breaks may be here
}

// The beginning of an event whose end has not come: all but a line break at its end, which may be half of that end.
void SseFilter::pass_large(std::string& out) {
  if (!passing_) {
    nonsense_ = !pending_.starts_with(kData) || pending_.starts_with(kErrorEvent);
    if (nonsense_) return;
    release_held(out);
    has_text_ = passing_ = true;
    ++num_events_;
  }
  const size_t most = pending_.size() - (pending_.ends_with('\n') ? 1 : 0);
  out.append(pending_, 0, most);
  pending_.erase(0, most);
}

void SseFilter::on_event(std::string_view event, std::string& out) {
  std::string kept;
  bool has_data = false;
  for (bool more = true; more;) {
    const size_t end = event.find('\n');
    const std::string_view line = event.substr(0, end);
    more = end != std::string_view::npos;
    if (more) event.remove_prefix(end + 1);
    if (line.starts_with(api::kTimelineComment)) {
      timeline_ = line.substr(api::kTimelineComment.size());
    } else if (line == "data: [DONE]") {
      done_ = true;
    } else if (line.starts_with(kErrorEvent)) {
      error_ = line.substr(std::string_view("data: ").size());
    } else if (!line.empty() && !line.starts_with(kOwnComment)) {
      has_data |= line.starts_with(kData);
      kept.append(line).append("\n");
    }
  }
  if (!kept.empty()) kept += '\n';
  if (has_data) {
    on_data(std::move(kept), out);
  } else {
    out += kept;
  }
  if (done_) release_held(out);  // an answer without text
}

void SseFilter::on_data(std::string lines, std::string& out) {
  if (!has_text_ && held_.size() + lines.size() <= kMaxHeld && api::is_role_chunk(lines)) {
    held_ += lines;
    ++num_held_;
    return;
  }
  has_text_ = true;
  release_held(out);
  out += lines;
  ++num_events_;
}

void SseFilter::release_held(std::string& out) {
  out += std::exchange(held_, {});
  num_events_ += std::exchange(num_held_, 0);
}

}  // namespace moectl::router
