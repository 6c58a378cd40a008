#include "core/engine/engine_setup.h"

#include <algorithm>
#include <limits>
#include <set>
#include <thread>
#include <utility>

#include "core/base/log.h"
#include "core/comm/rank_communicators.h"
#include "core/engine/engine_impl.h"
#include "core/engine/memory_plan.h"
#include "core/engine/rank_group.h"
#include "core/engine/rank_worker.h"
#include "core/model/inspect.h"
#include "core/model/model_hash.h"
#include "core/model/rank_weights.h"
#include "core/model/shapes.h"
#include "core/model/synthetic.h"
#include "core/model/weights.h"
#include "kernels/gpu.h"

namespace moectl {
namespace {

constexpr int64_t kDefaultKvBytes = 256ll << 20;  // on CPU
constexpr int64_t kGraphBytes = 512ll << 20;      // of captured decode steps, measured: docs/gpu.md
constexpr int kPromptLogitsRows = 64;  // prompt-logprob rows per step: bounds the logits buffer, not the requests

template <class... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) throw Error(Code::kBadConfig, fmt::format(format, std::forward<Args>(args)...));
}

// --kv-cache-dtype, as far as the backend has it.
DType kv_dtype(const EngineConfig& engine, const Ops& ops) {
  const std::vector<DType>& dtypes = ops.capabilities().kv_dtypes;
  if (engine.kv_cache_dtype == "auto") return dtypes.front();
  std::string names;
  for (DType t : dtypes) {
    if (engine.kv_cache_dtype == dtype_name(t)) return t;
    names += fmt::format(", {}", dtype_name(t));
  }
  throw Error(Code::kBadConfig, fmt::format("--kv-cache-dtype {}: the backend {} has auto{}", engine.kv_cache_dtype,
                                            ops.numerics_id(), names));
}

// Ranks that share the GPU of rank `rank`, itself among them: more than one for tests on fewer GPUs.
int ranks_on_device(const Parallelism& p, int rank) {
  int num = 0;
  for (int r = 0; r < p.world_size(); ++r) num += p.device_index(r) == p.device_index(rank);
  return num;
}

// "rank 1 (GPU 3)"; of a rank alone on a GPU "GPU 0".
std::string rank_name(const Parallelism& p, int rank, bool on_gpu) {
  if (!on_gpu) return fmt::format("rank {}", rank);
  const std::string gpu = fmt::format("GPU {}", p.device_index(rank));
  return p.world_size() == 1 ? gpu : fmt::format("rank {} ({})", rank, gpu);
}

// Bytes of each rank's KV cache on GPUs: what the fullest one leaves. Logs what each rank takes, before anything is
// loaded.
int64_t plan_memory(const EngineConfig& engine, const Config& model, const EngineSetup& setup,
                    const std::vector<RankResources>& ranks, int64_t page_bytes, int64_t needed_pages) {
  int64_t kv_bytes = std::numeric_limits<int64_t>::max();
  for (int r = 0; r < int(ranks.size()); ++r) {
    Ops& ops = ranks[size_t(r)].ops;
    const Device::Memory memory = ops.device().memory();
    MemoryPlan plan{.num_ranks = int(ranks.size()),
                    .total_bytes = memory.total_bytes,
                    .free_bytes = memory.free_bytes,
                    .utilization = engine.gpu_memory_utilization,
                    .weight_bytes = ranks[size_t(r)].weight_bytes,
                    .workspace_bytes = Model::workspace_bytes(model, setup.dims, setup.limits, setup.placement, ops) +
                                       rank_communicator_bytes(engine.collectives, engine.parallelism),
                    .graph_bytes = kGraphBytes,
                    .kv_bytes = engine.kv_cache_bytes / int64_t(ranks.size())};
    if (ranks.size() > 1) plan.rank = rank_name(engine.parallelism, r, true);
    const int sharing = ranks_on_device(engine.parallelism, r);
    plan.total_bytes /= sharing;
    plan.free_bytes /= sharing;
    plan.complete(page_bytes, needed_pages * page_bytes);
    log::info("GPU memory: {}", plan.text());
    kv_bytes = std::min(kv_bytes, plan.kv_bytes);
  }
  return kv_bytes;
}

// What the bits of a result depend on: two engines with equal ones compute equal bits.
std::string exactness_of(const std::string& ops, const EngineSetup& setup) {
  std::string id = fmt::format("{}-kv-{}", ops, dtype_name(setup.kv_dtype));
  if (setup.dims.tp_size > 1) id += fmt::format("-tp{}", setup.dims.tp_size);
  if (setup.dims.splits_experts) id += "-ep1";
  return id;
}

// Throws kBadData for end-of-sequence ids that are no tokens.
std::vector<int32_t> eos_token_ids(const Config& config, const GenerationDefaults& defaults) {
  std::vector<int32_t> ids = defaults.eos_token_ids.empty() ? config.eos_token_ids : defaults.eos_token_ids;
  for (int32_t id : ids)
    if (id < 0 || id >= config.vocab_size)
      throw Error(Code::kBadData,
                  fmt::format("eos_token_id {} of generation_config.json or config.json; ids are 0 .. {}", id,
                              config.vocab_size - 1));
  return ids;
}

}  // namespace

OpsOptions plan_ops(const EngineConfig& engine, const Config& model, int num_cores, int rank) {
  check_parallelism(engine.parallelism, model_dims(model));
  check_runnable(engine.parallelism);
  require(engine.local_prefill_tokens >= 0, "--local-prefill-tokens must be 0 or more, not {}",
          engine.local_prefill_tokens);
  require(engine.num_threads >= 0, "--threads must be 0 (one per core) or more, not {}", engine.num_threads);
  const int num_ranks = engine.parallelism.world_size();
  const int num_threads = engine.num_threads == 0 ? num_cores : engine.num_threads;
  const int threads_per_rank = std::max(1, num_threads / num_ranks);
  // What GPUs cannot do yet is refused with --device cuda (check_capabilities); with auto the CPU does it, and also
  // runs several ranks, which have never run on GPUs of their own.
  const bool cpu_only = num_ranks > 1 || engine.prefill_role || engine.prefill_source;
  return {.device = engine.device == "auto" && cpu_only ? "cpu" : engine.device,
          .cpu_path = engine.cpu_path,
          .num_threads = threads_per_rank,
          .spin = threads_per_rank * num_ranks <= num_cores,
          .device_index = engine.parallelism.device_index(rank),
          .precise = engine.precise,
          .deterministic = engine.deterministic,
          .has_peers = num_ranks > 1,
          .portable = engine.portable_kernels};
}

void check_capabilities(const EngineConfig& engine, const Capabilities& capabilities) {
  require(
      !engine.prefill_role || capabilities.kv_transfer,
      "--device {}: KV transfer between GPU workers is not in this version; serve with serve-decode, which computes "
      "prompts itself, or use --device cpu",
      engine.device);
}

EngineSetup plan_setup(const EngineConfig& engine, const Config& model, std::vector<int32_t> eos_token_ids,
                       const std::vector<RankResources>& ranks) {
  const Capabilities& capabilities = ranks.front().ops.capabilities();
  const int num_ranks = engine.parallelism.world_size(), dp_size = engine.parallelism.dp_size;
  EngineSetup setup;
  setup.kv_dtype = kv_dtype(engine, ranks.front().ops);
  setup.placement = plan_placement(model, engine.parallelism.ep_size, engine.num_redundant_experts);
  setup.dims = local_dims(model_dims(model), engine.parallelism, 0, setup.placement.num_physical);
  require(engine.max_num_seqs >= 1, "--max-num-seqs must be at least 1, not {}", engine.max_num_seqs);
  const int max_len = engine.max_model_len == 0 ? model.max_position_embeddings : engine.max_model_len;
  require(max_len >= 2 && max_len <= model.max_position_embeddings,
          "--max-model-len must be between 2 and the checkpoint's {} (max_position_embeddings), not {}",
          model.max_position_embeddings, max_len);

  const int max_tokens =
      engine.max_num_batched_tokens ? engine.max_num_batched_tokens : capabilities.default_step_tokens;
  setup.limits = {.max_tokens = max_tokens,
                  .max_model_len = max_len,
                  .peers_addressable = engine.collectives != Collectives::kNccl,
                  .all2all_backend = resolve_all2all_backend(engine.all2all_backend, capabilities,
                                                             engine.collectives != Collectives::kNccl),
                  .deterministic_combine = capabilities.host_readable || engine.deterministic || engine.precise};
  setup.limits.max_seqs = (engine.max_num_seqs + dp_size - 1) / dp_size;
  setup.limits.max_logits = setup.limits.max_seqs + std::min(kPromptLogitsRows, std::max(max_tokens, 1));
  setup.kv_bytes_per_token = KvCache::bytes_per_token(model, setup.dims, setup.kv_dtype);
  const int64_t page_bytes = setup.kv_bytes_per_token * kPageSize;
  const int64_t needed_pages = (max_len + kPageSize - 1) / kPageSize;
  const int64_t kv_cache_bytes =  // of all ranks
      capabilities.limited_memory ? plan_memory(engine, model, setup, ranks, page_bytes, needed_pages) * num_ranks
      : engine.kv_cache_bytes     ? engine.kv_cache_bytes
                                  : kDefaultKvBytes;
  const int64_t num_pages = kv_cache_bytes / num_ranks / page_bytes;
  require(num_pages >= needed_pages,
          "--kv-cache-memory-bytes {} gives each of {} rank(s) {} tokens of KV cache ({} bytes per token), less than "
          "one sequence of --max-model-len {}; give at least {} bytes or a smaller --max-model-len",
          kv_cache_bytes, num_ranks, std::max<int64_t>(num_pages, 0) * kPageSize, setup.kv_bytes_per_token, max_len,
          needed_pages * page_bytes * num_ranks);
  require(num_pages <= std::numeric_limits<int32_t>::max() / kPageSize,
          "--kv-cache-memory-bytes {} is {} pages per rank; at most {} can be addressed", kv_cache_bytes, num_pages,
          std::numeric_limits<int32_t>::max() / kPageSize);

  setup.scheduler = {.num_ranks = dp_size,
                     .num_pages = int(num_pages),
                     .page_size = kPageSize,
                     .max_num_seqs = engine.max_num_seqs,
                     .max_num_batched_tokens = max_tokens,
                     .max_prompt_logits = std::min(kPromptLogitsRows, std::max(max_tokens, 1)),
                     .max_model_len = max_len,
                     .vocab_size = model.vocab_size,
                     .enable_prefix_caching = engine.enable_prefix_caching,
                     .eos_token_ids = std::move(eos_token_ids),
                     .local_prefill_tokens = engine.local_prefill_tokens,
                     .takes_jobs = engine.prefill_role,
                     .compute_mtp_kv = engine.compute_mtp_kv && model.num_mtp_layers > 0 &&
                                       (engine.prefill_role || engine.prefill_source),
                     .max_steps_in_flight = engine.overlap_schedule && !engine.prefill_role && !engine.prefill_source
                                                ? capabilities.max_steps_in_flight
                                                : 1};
  require(max_tokens >= setup.scheduler.max_seqs_per_rank(),
          "--max-num-batched-tokens {} is less than the {} sequences a rank may run (--max-num-seqs {} over {} "
          "rank(s)); each needs one token per step",
          max_tokens, setup.scheduler.max_seqs_per_rank(), engine.max_num_seqs, dp_size);
  setup.limits.max_seqs = setup.scheduler.max_seqs_per_rank();
  setup.limits.max_logits = setup.scheduler.max_logits_per_rank();
  return setup;
}

std::unique_ptr<Engine> Engine::create(EngineConfig config) {
  const bool synthetic = !config.shape.empty();
  Config model = synthetic ? shape_config(config.shape) : read_config(config.model_dir);
  const Checkpoint checkpoint =
      synthetic ? synthetic_checkpoint(model, config.shape) : Checkpoint::open(config.model_dir);
  if (const int absent = leave_out_absent_mtp(model, checkpoint))
    log::warn("{}: config.json promises {} MTP module(s), but the checkpoint has no tensor of them; they are left out",
              config.model_dir, absent);

  const int num_ranks = config.parallelism.world_size();
  if (num_ranks > 1 && config.device == "cuda") load_kernels_eagerly();
  const int num_cores = int(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::unique_ptr<Ops>> ops;
  const auto add_rank = [&] {
    const int rank = int(ops.size());
    auto backend = make_ops(plan_ops(config, model, num_cores, rank));
    ops.push_back(config.wrap_ops ? config.wrap_ops(std::move(backend), rank) : std::move(backend));
  };
  add_rank();
  const Capabilities& capabilities = ops.front()->capabilities();
  check_capabilities(config, capabilities);
  if (!capabilities.kv_transfer && std::exchange(config.prefill_source, nullptr))
    log::info("prompts are computed here: KV transfer between GPU workers is not in this version");
  if (!capabilities.splits_scale_blocks) check_shards(model, checkpoint, config.parallelism);
  while (int(ops.size()) < num_ranks) add_rank();

  const ExpertPlacement placement = plan_placement(model, config.parallelism.ep_size, config.num_redundant_experts);
  const std::vector<Shard> shards = rank_shards(model, config.parallelism, placement);
  std::vector<RankResources> resources;
  std::vector<Ops*> rank_ops;
  std::vector<Device*> devices;
  for (size_t r = 0; r < ops.size(); ++r) {
    rank_ops.push_back(ops[r].get());
    devices.push_back(&ops[r]->device());
    resources.push_back({*ops[r]});
    if (capabilities.limited_memory) resources.back().weight_bytes = shard_bytes(model, checkpoint, shards[r]);
  }
  config.collectives = choose_collectives(config.collectives, devices);
  const GenerationDefaults defaults = synthetic ? GenerationDefaults{} : read_generation_defaults(config.model_dir);
  const EngineSetup setup = plan_setup(config, model, eos_token_ids(model, defaults), resources);
  if (num_ranks == 1 && config.all2all_backend != All2AllBackend::kAuto)
    log::info("--all2all-backend {} has no effect: there is one rank", all2all_backend_name(config.all2all_backend));

  const auto weights = load_ranks(model, checkpoint, rank_ops, config.parallelism, setup.placement, config.progress);
  int64_t weight_bytes = 0;
  for (const auto& w : std::set(weights.begin(), weights.end())) weight_bytes += w->num_bytes;
  const std::string exactness = exactness_of(ops.front()->numerics_id(), setup);
  const std::string device = capabilities.device;
  const auto step_timeout =
      capabilities.asynchronous ? config.step_timeout.value_or(kStepTimeout) : std::chrono::milliseconds(0);
  auto comms =
      make_rank_communicators(config.collectives, devices, config.parallelism, config.deterministic || config.precise);
  std::vector<RankSetup> ranks;
  for (size_t r = 0; r < weights.size(); ++r)
    ranks.push_back({.name = rank_name(config.parallelism, int(r), device == "cuda"),
                     .weights = weights[r],
                     .ops = std::move(ops[r]),
                     .comm = std::move(comms[r].experts),
                     .tp = std::move(comms[r].tp),
                     .placement = setup.placement,
                     .num_pages = setup.scheduler.num_pages,
                     .kv_dtype = setup.kv_dtype,
                     .limits = setup.limits,
                     .compute_mtp_kv = setup.scheduler.compute_mtp_kv});
  const InspectReport::Parameters parameters =
      (synthetic ? inspect_config(model) : inspect_checkpoint(config.model_dir)).parameters;
  ModelInfo info{.architecture = model.model_type,
                 .device = device,
                 .parallelism = config.parallelism,
                 .all2all_backend = num_ranks > 1 ? std::optional(setup.limits.all2all_backend) : std::nullopt,
                 .vocab_size = model.vocab_size,
                 .max_model_len = setup.scheduler.max_model_len,
                 .eos_token_ids = setup.scheduler.eos_token_ids,
                 .num_active_params = parameters.active,
                 .num_params = parameters.total,
                 .weight_bytes = weight_bytes,
                 .kv_bytes_per_token = setup.kv_bytes_per_token,
                 .kv_pool_tokens = int64_t{setup.scheduler.num_pages} * kPageSize * config.parallelism.dp_size,
                 .exactness = exactness,
                 .kv_format = fmt::format("{}-{}", dtype_name(setup.kv_dtype), kKvLayoutVersion),
                 .model_hash = synthetic ? "synthetic: " + config.shape : model_hash(checkpoint)};
  return start_engine(std::move(info), setup.scheduler, start_rank_workers(model, std::move(ranks)),
                      config.prefill_source, step_timeout);
}

}  // namespace moectl
