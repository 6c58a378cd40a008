// What follows from several flags together: sizes that contradict each other, values this build cannot serve, the model
// folder and the served name. Looks at the file system for the model folder only.
#include <fmt/format.h>
#include <filesystem>

#include "cmd/flags/flags.h"
#include "core/model/shapes.h"
#include "core/service/service.h"

namespace moectl {
namespace {

namespace fs = std::filesystem;

// "--ep-size 4" or "EP_SIZE=4" as the user wrote it.
std::string quoted(const Given& given, std::string_view flag) {
  const GivenValue& value = given.at(flag).values.back();
  return fmt::format("{}{}{}", value.origin, value.origin.starts_with("--") ? " " : "=", value.text);
}

void resolve_parallel(Options& options, const Given& given) {
  auto& [tp, dp, ep] = options.parallel;
  if (tp > 1)
    throw Error(Code::kBadConfig, fmt::format("{}: tensor parallelism is not built in yet; only 1 can be served. Use "
                                              "--ep-size to spread the model over ranks",
                                              quoted(given, "tensor-parallel-size")));
  tp = 1;
  if (dp == 0 && ep == 0) dp = 1;
  if (dp == 0) dp = ep / tp;
  if (ep == 0) ep = tp * dp;
  if (ep != tp * dp) {
    const std::string tp_text =
        given.count("tensor-parallel-size") ? quoted(given, "tensor-parallel-size") + " and " : "";
    throw Error(
        Code::kBadConfig,
        fmt::format("{} contradicts {}{}: the expert parallel size must be TP x DP = {} x {} = {}; give one of them",
                    quoted(given, "expert-parallel-size"), tp_text, quoted(given, "data-parallel-size"), tp, dp,
                    tp * dp));
  }
  options.engine.ep_size = ep;
}

fs::path own_executable() {
  std::error_code failed;
  return fs::read_symlink("/proc/self/exe", failed);
}

// `models/demo` of the current directory, of the source tree above build/moectl, or of the installation.
fs::path find_demo_model() {
  std::vector<fs::path> places = {"models/demo"};
  if (const fs::path program = own_executable(); !program.empty()) {
    places.push_back(program.parent_path().parent_path() / "models/demo");
    places.push_back(program.parent_path().parent_path() / "share/moectl/models/demo");
  }
  std::error_code failed;
  for (const fs::path& place : places)
    if (fs::is_directory(place, failed)) return place;
  throw Error(Code::kNotFound,
              fmt::format("no model given, and the demo model is in none of {}. Name a checkpoint folder: "
                          "`--model DIR`, or MOECTL_MODEL",
                          fmt::join(std::vector<std::string>(places.begin(), places.end()), ", ")));
}

// Only `bench kernels` takes several.
void resolve_shapes(Options& options, const Command& command, const Given& given) {
  for (const std::string& shape : options.shapes) shape_config(shape);  // throws where there is none
  if (command.name == "bench kernels" || options.shapes.empty()) return;
  if (options.shapes.size() > 1)
    throw Error(Code::kBadConfig, fmt::format("{}: `{}` takes one shape", quoted(given, "shape"), command.name));
  options.engine.shape = options.shapes.front();
}

void resolve_model(Options& options, const Given& given) {
  std::string& dir = options.engine.model_dir;
  if (!options.engine.shape.empty()) {
    if (!dir.empty())
      throw Error(Code::kBadConfig,
                  fmt::format("{} and {}: give one of them", quoted(given, "model"), quoted(given, "shape")));
    if (options.api.served_model_name.empty()) options.api.served_model_name = options.engine.shape;
    options.api.skip_tokenizer_init = true;
    return;
  }
  if (dir.empty()) {
    dir = find_demo_model().string();
  } else {
    std::error_code failed;
    const fs::file_status status = fs::status(dir, failed);
    const std::string& origin = given.at("model").values.back().origin;
    if (!fs::exists(status))
      throw Error(Code::kNotFound,
                  fmt::format("{}: there is no checkpoint folder `{}`. Models are not downloaded: give the "
                              "path of a folder with config.json",
                              origin, dir));
    if (!fs::is_directory(status))
      throw Error(Code::kNotFound,
                  fmt::format("{}: `{}` is a file; give the folder that holds config.json", origin, dir));
  }
  if (options.api.served_model_name.empty()) {
    std::error_code failed;
    const fs::path real = fs::canonical(dir, failed);
    options.api.served_model_name = (failed ? fs::path(dir) : real).filename().string();
  }
}

void resolve_engine(Options& options, const Given& given) {
  if (options.block_size != 64)
    throw Error(Code::kBadConfig,
                fmt::format("{}: pages hold 64 tokens; no other size can be served", quoted(given, "block-size")));
}

int default_port(std::string_view command) {
  if (command == "serve-prefill") return 8100;
  return command == "serve-router" ? 8080 : 8000;
}

void resolve_api(Options& options, const Command& command, const Given& given) {
  if (options.api.port < 0) options.api.port = default_port(command.name);
  if (!given.contains("allow-debug-header")) options.api.debug_header = is_loopback(options.api.host);
  if (options.api.ssl_certfile.empty() != options.api.ssl_keyfile.empty()) {
    const bool has_cert = !options.api.ssl_certfile.empty();
    throw Error(Code::kBadConfig,
                fmt::format("{} needs {} too", quoted(given, has_cert ? "ssl-certfile" : "ssl-keyfile"),
                            has_cert ? "--ssl-keyfile" : "--ssl-certfile"));
  }
  if (options.api.ops_port > 0 && options.api.ops_port == options.api.port)
    throw Error(Code::kBadConfig,
                fmt::format("{} is the API port too; operations need a port of their own", quoted(given, "ops-port")));
}

// A server that listens on its own ports must not use one twice.
void resolve_kv_port(const Options& options, const Given& given) {
  const int kv = options.cluster.kv_port;
  if (kv > 0 && (kv == options.api.port || kv == options.api.ops_port))
    throw Error(Code::kBadConfig, fmt::format("the KV port {} is {} too; give each a port of its own", kv,
                                              kv == options.api.port ? "the API port" : quoted(given, "ops-port")));
}

void resolve_load(const Options& options, const Given& given) {
  if (options.serve_load.request_rate > 0 && given.count("concurrency"))
    throw Error(Code::kBadConfig, fmt::format("{} and {}: give one of them", quoted(given, "request-rate"),
                                              quoted(given, "concurrency")));
  if (options.serve_load.shared_prefix_len > options.load.input_len)
    throw Error(Code::kBadConfig, fmt::format("{} is longer than the prompts (--input-len {})",
                                              quoted(given, "shared-prefix-len"), options.load.input_len));
}

}  // namespace

void resolve(Options& options, const Command& command, const Given& given) {
  const auto takes = [&](std::string_view flag) { return find_flag(command.name, flag) != nullptr; };
  if (takes("ep-size")) resolve_parallel(options, given);
  if (takes("device") && !given.contains("device")) options.engine.device = "auto";
  if (takes("shape")) resolve_shapes(options, command, given);
  if (takes("block-size")) resolve_engine(options, given);
  if (takes("port")) resolve_api(options, command, given);
  if (takes("kv-port")) resolve_kv_port(options, given);
  // The positional MODEL is a folder; clients have a --model that is only a name.
  if (const Flag* model = find_flag(command.name, "model"); model && model->positional) resolve_model(options, given);
  if (takes("request-rate")) resolve_load(options, given);
}

}  // namespace moectl
