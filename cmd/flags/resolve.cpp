// What follows from several flags together: sizes that contradict each other, values this build cannot serve, the model
// folder and the served name. Looks at the file system for the model folder only.
#include <fmt/format.h>
#include <algorithm>
#include <filesystem>
#include <thread>

#include "cmd/flags/flags.h"
#include "core/model/shapes.h"
#include "core/service/service.h"
#include "router/policy.h"

namespace moectl {
namespace {

namespace fs = std::filesystem;

// "--ep-size 4" or "EP_SIZE=4" as the user wrote it.
std::string quoted(const Given& given, std::string_view flag) {
  const GivenValue& value = given.at(flag).values.back();
  return fmt::format("{}{}{}", value.origin, value.origin.starts_with("--") ? " " : "=", value.text);
}

// `runs`: the command runs these ranks, and does not only count what they hold.
Parallelism resolve_parallel(const RawOptions& raw, const Given& given, bool runs) {
  const auto size = [&](const std::optional<int>& value, std::string_view flag) -> std::optional<GivenSize> {
    if (!value) return std::nullopt;
    return GivenSize{*value, quoted(given, flag)};
  };
  const GivenParallelism sizes = {.tp_size = size(raw.tp_size, "tensor-parallel-size"),
                                  .dp_size = size(raw.dp_size, "data-parallel-size"),
                                  .ep_size = size(raw.ep_size, "expert-parallel-size")};
  Parallelism p = resolve_parallelism(sizes);
  p.devices = raw.devices;
  if (runs) check_runnable(p);
  return p;
}

// What `inspect` is asked about ranks; nullopt: nothing.
std::optional<RankMemoryQuery> resolve_ranks(const RawOptions& raw, const EngineConfig& engine) {
  if (!raw.tp_size && !raw.dp_size && !raw.ep_size && !engine.num_redundant_experts && raw.gpu_memory_gb == 0)
    return std::nullopt;
  return RankMemoryQuery{.parallelism = engine.parallelism,
                         .num_redundant_experts = engine.num_redundant_experts,
                         .max_model_len = engine.max_model_len,
                         .gpu_memory_bytes = int64_t(raw.gpu_memory_gb * 1e9),
                         .gpu_memory_utilization = engine.gpu_memory_utilization};
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
void resolve_shapes(const RawOptions& raw, Options& options, const Command& command, const Given& given) {
  for (const std::string& shape : raw.shapes) shape_config(shape);  // throws where there is none
  if (raw.shapes.empty()) return;
  if (command.name == "bench kernels") {
    options.kernels.shapes = raw.shapes;
    return;
  }
  if (raw.shapes.size() > 1)
    throw Error(Code::kBadConfig, fmt::format("{}: `{}` takes one shape", quoted(given, "shape"), command.name));
  options.engine.shape = raw.shapes.front();
}

void check_model_folder(const std::string& dir, const std::string& origin) {
  std::error_code failed;
  const fs::file_status status = fs::status(dir, failed);
  if (!fs::exists(status))
    throw Error(Code::kNotFound,
                fmt::format("{}: there is no checkpoint folder `{}`. Models are not downloaded: give the "
                            "path of a folder with config.json",
                            origin, dir));
  if (!fs::is_directory(status))
    throw Error(Code::kNotFound,
                fmt::format("{}: `{}` is a file; give the folder that holds config.json", origin, dir));
}

void resolve_model(const RawOptions& raw, Options& options, const Given& given) {
  std::string& dir = options.engine.model_dir;
  std::string own_name = options.engine.shape;
  if (!options.engine.shape.empty()) {
    if (raw.model)
      throw Error(Code::kBadConfig,
                  fmt::format("{} and {}: give one of them", quoted(given, "model"), quoted(given, "shape")));
    options.service.skip_tokenizer_init = true;
  } else {
    if (raw.model) check_model_folder(*raw.model, given.at("model").values.back().origin);
    dir = raw.model ? *raw.model : find_demo_model().string();
    std::error_code failed;
    const fs::path real = fs::canonical(dir, failed);
    own_name = (failed ? fs::path(dir) : real).filename().string();
  }
  options.service.served_model_name = raw.served_model_name.value_or(own_name);
}

void check_block_size(const RawOptions& raw, const Given& given) {
  if (raw.block_size != 64)
    throw Error(Code::kBadConfig,
                fmt::format("{}: pages hold 64 tokens; no other size can be served", quoted(given, "block-size")));
}

// Flags and values of vLLM that a later version will have.
void check_version(const RawOptions& raw, const EngineConfig& engine, const Given& given) {
  constexpr std::string_view kNoBalancing =
      "expert load balancing is not in this version; use --num-redundant-experts, and read the load of the experts "
      "from moectl_expert_load in /metrics";
  const auto refuse = [](const std::string& what, std::string_view why) {
    throw Error(Code::kBadConfig, fmt::format("{}: {}", what, why));
  };
  const auto origin = [&](std::string_view flag) { return given.at(flag).values.back().origin; };  // of a switch
  if (raw.enable_eplb) refuse(origin("enable-eplb"), kNoBalancing);
  if (raw.eplb_step_interval) refuse(quoted(given, "eplb-step-interval"), kNoBalancing);
  if (raw.enable_dbo)
    refuse(
        origin("enable-dbo"),
        "two-batch overlap is not in this version; use --max-num-batched-tokens, which bounds the one batch of a step");
  if (engine.kv_cache_dtype == "fp8")
    refuse(quoted(given, "kv-cache-dtype"), "an fp8 KV cache is not in this version; use auto, f32 or bf16");
}

int default_port(std::string_view command) {
  if (command == "serve-prefill") return 8100;
  return command == "serve-router" ? 8080 : 8000;
}

void resolve_api(const RawOptions& raw, ApiOptions& api, const Command& command, const Given& given) {
  api.version = MOECTL_VERSION;
  api.port = raw.port.value_or(default_port(command.name));
  api.debug_header = raw.debug_header.value_or(is_loopback(api.host));
  if (api.ssl_certfile.empty() != api.ssl_keyfile.empty()) {
    const bool has_cert = !api.ssl_certfile.empty();
    throw Error(Code::kBadConfig,
                fmt::format("{} needs {} too", quoted(given, has_cert ? "ssl-certfile" : "ssl-keyfile"),
                            has_cert ? "--ssl-keyfile" : "--ssl-certfile"));
  }
  if (api.port > 0 && api.ops_port == api.port)
    throw Error(Code::kBadConfig,
                fmt::format("{} is the API port too; operations need a port of their own", quoted(given, "ops-port")));
}

// A server that listens on its own ports must not use one twice.
void check_kv_port(int kv, const ApiOptions& api, const Given& given) {
  if (kv > 0 && (kv == api.port || kv == api.ops_port))
    throw Error(Code::kBadConfig, fmt::format("the KV port {} is {} too; give each a port of its own", kv,
                                              kv == api.port ? "the API port" : quoted(given, "ops-port")));
}

// The role's own flag, else --policy, else the default of the role.
void resolve_policy(std::string& policy, const std::optional<std::string>& of_role,
                    const std::optional<std::string>& common, std::string_view flag, const Given& given) {
  if (!of_role && !common) return;
  policy = of_role ? *of_role : *common;
  try {
    router::make_policy(policy, {});
  } catch (const Error& e) {
    throw Error(Code::kUsage, fmt::format("{}: {}", quoted(given, of_role ? flag : "policy"), e.what()));
  }
}

void check_load(const Options& options, const Given& given) {
  if (options.serve_load.request_rate > 0 && given.count("concurrency"))
    throw Error(Code::kBadConfig, fmt::format("{} and {}: give one of them", quoted(given, "request-rate"),
                                              quoted(given, "concurrency")));
  if (options.serve_load.shared_prefix_len > options.load.input_len)
    throw Error(Code::kBadConfig, fmt::format("{} is longer than the prompts (--input-len {})",
                                              quoted(given, "shared-prefix-len"), options.load.input_len));
}

}  // namespace

Options resolve(RawOptions raw, const Command& command, const Given& given) {
  const auto takes = [&](std::string_view flag) { return find_flag(command.name, flag) != nullptr; };
  Options options = std::move(raw.values);
  options.engine.device = options.kernels.device = options.comm.device = raw.device;
  options.engine.num_threads = options.kernels.num_threads = options.comm.num_threads =
      raw.num_threads.value_or(int(std::max(1u, std::thread::hardware_concurrency())));
  options.service.kv_port = raw.kv_port;
  if (takes("collectives")) options.engine.collectives = parse_collectives(raw.collectives);
  if (takes("data-parallel-size")) options.engine.parallelism = resolve_parallel(raw, given, command.name != "inspect");
  options.comm.devices = raw.devices;
  options.comm.backend = parse_all2all_backend(raw.all2all_backend);
  options.comm.pause = std::chrono::milliseconds(raw.pause_ms);
  if (takes("gpu-memory-gb")) options.ranks = resolve_ranks(raw, options.engine);
  options.engine.all2all_backend = parse_all2all_backend(raw.all2all_backend);
  if (takes("shape")) resolve_shapes(raw, options, command, given);
  if (takes("block-size")) check_block_size(raw, given);
  if (takes("enable-eplb")) check_version(raw, options.engine, given);
  if (takes("ops-port")) resolve_api(raw, options.api, command, given);
  options.service.api = options.router.api = options.api;
  if (takes("kv-port")) check_kv_port(raw.kv_port, options.api, given);
  if (takes("policy")) {
    router::DispatcherOptions& dispatcher = options.router.dispatcher;
    resolve_policy(dispatcher.prefill_policy, raw.prefill_policy, raw.policy, "prefill-policy", given);
    resolve_policy(dispatcher.decode_policy, raw.decode_policy, raw.policy, "decode-policy", given);
  }
  // The positional MODEL is a folder; clients have a --model that is only a name.
  if (const Flag* model = find_flag(command.name, "model"); model && model->positional)
    resolve_model(raw, options, given);
  if (takes("request-rate")) check_load(options, given);
  options.endpoint.api_keys = options.api.api_keys;
  return options;
}

}  // namespace moectl
