// The report of `moectl bench serve --html`: one page, no script, nothing from the network, for light and dark. Pure.
#pragma once

#include <string>

#include "cmd/bench/serve.h"

namespace moectl {

std::string html_report(const BenchRun& run);

}  // namespace moectl
