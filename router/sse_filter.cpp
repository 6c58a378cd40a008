#include "router/sse_filter.h"

#include <algorithm>
#include <utility>

#include "core/api/cluster.h"

namespace moectl::router {
namespace {
constexpr std::string_view kOwnComment = ": moectl", kErrorEvent = R"(data: {"error":)";
}

void SseFilter::feed(std::string_view piece, std::string& out) {
  if (done_ || overflow_) return;
  pending_.append(piece);
  size_t begin = 0;
  for (;;) {
    const size_t end = pending_.find("\n\n", std::max(begin, searched_));
    if (end == std::string::npos || done_) break;
    on_event(std::string_view(pending_).substr(begin, end - begin), out);
    begin = searched_ = end + 2;
  }
  pending_.erase(0, begin);
  searched_ = pending_.empty() ? 0 : pending_.size() - 1;  // the first of two line breaks may be here
  overflow_ = pending_.size() > kMaxEventBytes;
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
      has_data |= line.starts_with("data:");
      kept.append(line).append("\n");
    }
  }
  if (!kept.empty()) kept += '\n';
  if (has_data) {
    on_data(std::move(kept), out);
  } else {
    out += kept;
  }
  if (done_ && !first_.empty()) {  // an answer without text
    out += std::exchange(first_, {});
    ++num_events_;
  }
}

void SseFilter::on_data(std::string lines, std::string& out) {
  if (!std::exchange(has_first_, true)) {
    first_ = std::move(lines);
    return;
  }
  if (!first_.empty()) {
    out += std::exchange(first_, {});
    ++num_events_;
  }
  out += lines;
  ++num_events_;
}

}  // namespace moectl::router
