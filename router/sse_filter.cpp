#include "router/sse_filter.h"

#include <algorithm>

#include "core/api/cluster.h"

namespace moectl::router {
namespace {
constexpr std::string_view kOwnComment = ": moectl";
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
  const size_t before = out.size();
  for (bool more = true; more;) {
    const size_t end = event.find('\n');
    const std::string_view line = event.substr(0, end);
    more = end != std::string_view::npos;
    if (more) event.remove_prefix(end + 1);
    if (line.starts_with(api::kTimelineComment)) {
      timeline_ = line.substr(api::kTimelineComment.size());
      continue;
    }
    if (line.starts_with(kOwnComment) || line.empty()) continue;
    if (line == "data: [DONE]") {
      done_ = true;
      break;
    }
    if (line.starts_with("data:")) {
      ++num_events_;
      failed_ = line.starts_with(R"(data: {"error")");
    }
    out.append(line).append("\n");
  }
  if (out.size() > before) out.append("\n");
}

}  // namespace moectl::router
