// `moectl inspect`: prints the report of core/model/inspect.h. A checkpoint that could not be served is reported all
// the same; then the exit status is 65, with a line on stderr.
#include "core/model/inspect.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "core/base/error.h"
#include "core/model/shapes.h"

namespace moectl {

int inspect(const InspectOptions& options) {
  const InspectReport report = options.shape.empty()
                                   ? inspect_checkpoint(options.model_dir, options.ranks)
                                   : inspect_config(shape_config(options.shape), options.shape, options.ranks);
  // Names in a checkpoint need not be UTF-8; JSON must be.
  const std::string text = options.common.json
                               ? to_json(report).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                               : to_text(report);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
  if (!report.supported)
    throw Error(Code::kBadData, fmt::format("{}: cannot be served: see `unsupported` in the report", report.path));
  if (report.missing.count + report.wrong.count > 0)
    throw Error(Code::kBadData,
                fmt::format("{}: cannot be served: {} tensors are missing and {} are not as config.json says",
                            report.path, report.missing.count, report.wrong.count));
  return 0;
}

}  // namespace moectl
