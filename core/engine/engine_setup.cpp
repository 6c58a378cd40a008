#include "core/engine/engine_setup.h"

#include <algorithm>
#include <limits>
#include <thread>
#include <utility>

#include "core/base/log.h"
#include "core/engine/engine_impl.h"
#include "core/engine/memory_plan.h"
#include "core/engine/rank_worker.h"
#include "core/model/inspect.h"
#include "core/model/model_hash.h"
#include "core/model/shapes.h"
#include "core/model/synthetic.h"
#include "core/model/weights.h"

namespace moectl {
namespace {

constexpr int64_t kDefaultKvBytes = 256ll << 20;  // on CPU
constexpr int kDefaultStepTokens = 512, kDefaultGpuStepTokens = 2048;
constexpr int64_t kGraphBytes = 512ll << 20;  // room for recorded decode steps, measured: docs/gpu.md
constexpr int kPromptLogitsRows = 64;         // prompt-logprob rows a step: bounds the logits buffer, not the requests

template <class... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) throw Error(Code::kBadConfig, fmt::format(format, std::forward<Args>(args)...));
}

void check_parallelism(const EngineConfig& engine, const Config& model) {
  require(engine.ep_size >= 1, "--ep-size must be at least 1, not {}", engine.ep_size);
  const int experts = model.moe.num_experts;
  require(engine.ep_size == 1 || experts > 0, "--ep-size {}: this checkpoint has no experts to distribute; use 1",
          engine.ep_size);
  require(experts == 0 || experts % engine.ep_size == 0, "--ep-size {} does not divide the checkpoint's {} experts",
          engine.ep_size, experts);
  require(engine.local_prefill_tokens >= 0, "--local-prefill-tokens must be 0 or more, not {}",
          engine.local_prefill_tokens);
  require(engine.num_threads >= 0, "--threads must be 0 (one a core) or more, not {}", engine.num_threads);
}

// The cache's number format: --kv-cache-dtype, as far as the backend has it.
DType kv_dtype(const EngineConfig& engine, const Ops& ops) {
  const std::vector<DType> dtypes = ops.kv_dtypes();
  if (engine.kv_cache_dtype == "auto") return dtypes.front();
  std::string names;
  for (DType t : dtypes) {
    if (engine.kv_cache_dtype == dtype_name(t)) return t;
    names += fmt::format(", {}", dtype_name(t));
  }
  throw Error(Code::kBadConfig, fmt::format("--kv-cache-dtype {}: the backend {} has auto{}", engine.kv_cache_dtype,
                                            ops.numerics_id(), names));
}

void check_cuda(const EngineConfig& engine) {
  require(engine.ep_size == 1,
          "--ep-size {} with --device cuda: exchange between GPUs is not there yet; use --ep-size 1 "
          "or --device cpu",
          engine.ep_size);
  require(!engine.prefill_role,
          "--device cuda: KV transfer between GPU workers is not there yet; serve with serve-decode, which computes "
          "prompts itself, or use --device cpu");
}

// Bytes of the GPU's KV cache, in whole pages. Says what goes where, before anything is loaded.
int64_t plan_memory(const EngineConfig& engine, const Config& model, const EngineSetup& setup, const Ops& ops,
                    int64_t weight_bytes, int64_t page_bytes, int64_t needed_pages) {
  const Ops::Memory memory = ops.memory();
  MemoryPlan plan{.total_bytes = memory.total_bytes,
                  .free_bytes = memory.free_bytes,
                  .utilization = engine.gpu_memory_utilization,
                  .weight_bytes = weight_bytes,
                  .workspace_bytes = Model::workspace_bytes(model, setup.limits, engine.ep_size, ops),
                  .graph_bytes = kGraphBytes,
                  .kv_bytes = engine.kv_cache_bytes};
  plan.complete(page_bytes, needed_pages * page_bytes);
  log::info("GPU memory: {}", plan.text());
  return plan.kv_bytes;
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

OpsOptions plan_ops(const EngineConfig& engine, const Config& model, int num_cores) {
  check_parallelism(engine, model);
  const int num_threads = engine.num_threads == 0 ? num_cores : engine.num_threads;
  const int threads_per_rank = std::max(1, num_threads / engine.ep_size);
  // What the CUDA backend cannot do yet: asked for by name it is refused (check_cuda), else the CPU does it.
  const bool cpu_only = engine.ep_size > 1 || engine.prefill_role || engine.prefill_source;
  return {.device = engine.device == "auto" && cpu_only ? "cpu" : engine.device,
          .cpu_path = engine.cpu_path,
          .num_threads = threads_per_rank,
          .spin = threads_per_rank * engine.ep_size <= num_cores,
          .precise = engine.precise,
          .deterministic = engine.deterministic,
          .portable = engine.portable_kernels};
}

EngineSetup plan_setup(const EngineConfig& engine, const Config& model, std::vector<int32_t> eos_token_ids,
                       const Ops& ops, int64_t weight_bytes) {
  EngineSetup setup;
  setup.kv_dtype = kv_dtype(engine, ops);
  if (!ops.host_memory()) check_cuda(engine);
  require(engine.max_num_seqs >= 1, "--max-num-seqs must be at least 1, not {}", engine.max_num_seqs);
  const int max_len = engine.max_model_len == 0 ? model.max_position_embeddings : engine.max_model_len;
  require(max_len >= 2 && max_len <= model.max_position_embeddings,
          "--max-model-len must be between 2 and the checkpoint's {} (max_position_embeddings), not {}",
          model.max_position_embeddings, max_len);

  const int max_tokens = engine.max_num_batched_tokens != 0 ? engine.max_num_batched_tokens
                         : ops.host_memory()                ? kDefaultStepTokens
                                                            : kDefaultGpuStepTokens;
  setup.limits = {.max_tokens = max_tokens, .max_model_len = max_len};
  setup.limits.max_seqs = (engine.max_num_seqs + engine.ep_size - 1) / engine.ep_size;
  setup.limits.max_logits = setup.limits.max_seqs + std::min(kPromptLogitsRows, std::max(max_tokens, 1));
  setup.kv_bytes_per_token = KvCache::bytes_per_token(model, setup.kv_dtype);
  const int64_t page_bytes = setup.kv_bytes_per_token * kPageSize;
  const int64_t needed_pages = (max_len + kPageSize - 1) / kPageSize;
  const int64_t kv_cache_bytes = ops.host_memory()
                                     ? (engine.kv_cache_bytes ? engine.kv_cache_bytes : kDefaultKvBytes)
                                     : plan_memory(engine, model, setup, ops, weight_bytes, page_bytes, needed_pages);
  const int64_t num_pages = kv_cache_bytes / engine.ep_size / page_bytes;
  require(num_pages >= needed_pages,
          "--kv-cache-memory-bytes {} gives each of {} rank(s) {} tokens of KV cache ({} bytes a token), less than one "
          "sequence of "
          "--max-model-len {}; give at least {} bytes or a smaller --max-model-len",
          kv_cache_bytes, engine.ep_size, std::max<int64_t>(num_pages, 0) * kPageSize, setup.kv_bytes_per_token,
          max_len, needed_pages * page_bytes * engine.ep_size);
  require(num_pages <= std::numeric_limits<int32_t>::max() / kPageSize,
          "--kv-cache-memory-bytes {} is {} pages a rank; at most {} can be addressed", kv_cache_bytes, num_pages,
          std::numeric_limits<int32_t>::max() / kPageSize);

  setup.scheduler = {
      .num_ranks = engine.ep_size,
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
      .compute_mtp_kv =
          engine.compute_mtp_kv && model.num_mtp_layers > 0 && (engine.prefill_role || engine.prefill_source),
      .max_steps_in_flight =
          engine.overlap_schedule && !ops.host_memory() && !engine.prefill_role && !engine.prefill_source ? 2 : 1};
  require(max_tokens >= setup.scheduler.max_seqs_per_rank(),
          "--max-num-batched-tokens {} is less than the {} sequences a rank may run (--max-num-seqs {} over {} "
          "rank(s)); each needs a "
          "token a step",
          max_tokens, setup.scheduler.max_seqs_per_rank(), engine.max_num_seqs, engine.ep_size);
  setup.limits.max_seqs = setup.scheduler.max_seqs_per_rank();
  setup.limits.max_logits = setup.scheduler.max_logits_per_rank();
  return setup;
}

std::unique_ptr<Engine> Engine::create(EngineConfig config) {
  const bool made_up = !config.shape.empty();
  Config model = made_up ? shape_config(config.shape) : read_config(config.model_dir);
  const Checkpoint checkpoint =
      made_up ? synthetic_checkpoint(model, config.shape) : Checkpoint::open(config.model_dir);
  if (const int absent = leave_out_absent_mtp(model, checkpoint))
    log::warn("{}: config.json promises {} MTP module(s), but the checkpoint has no tensor of them; going on without",
              config.model_dir, absent);
  const OpsOptions backend = plan_ops(config, model, int(std::max(1u, std::thread::hardware_concurrency())));
  std::unique_ptr<Ops> first_ops = make_ops(backend);
  if (!first_ops->host_memory() && std::exchange(config.prefill_source, nullptr))
    log::info("prompts are computed here: KV transfer between GPU workers is not there yet");
  const GenerationDefaults defaults = made_up ? GenerationDefaults{} : read_generation_defaults(config.model_dir);
  const EngineSetup setup =
      plan_setup(config, model, eos_token_ids(model, defaults), *first_ops, checkpoint.total_bytes());

  std::vector<RankSetup> ranks;
  std::shared_ptr<const ModelWeights> weights;
  for (auto& comm : make_local_communicators(config.ep_size)) {
    auto ops = first_ops ? std::move(first_ops) : make_ops(backend);
    if (!weights) weights = load_weights(model, checkpoint, *ops, config.progress);
    ranks.push_back({.weights = weights,
                     .ops = std::move(ops),
                     .comm = std::move(comm),
                     .num_pages = setup.scheduler.num_pages,
                     .kv_dtype = setup.kv_dtype,
                     .limits = setup.limits,
                     .eos_token_ids = setup.scheduler.eos_token_ids,
                     .compute_mtp_kv = setup.scheduler.compute_mtp_kv});
  }
  const InspectReport::Parameters parameters =
      (made_up ? inspect_config(model) : inspect_checkpoint(config.model_dir)).parameters;
  ModelInfo info{.architecture = model.model_type,
                 .vocab_size = model.vocab_size,
                 .max_model_len = setup.scheduler.max_model_len,
                 .eos_token_ids = setup.scheduler.eos_token_ids,
                 .num_active_params = parameters.active,
                 .num_params = parameters.total,
                 .weight_bytes = weight_bytes(*weights),
                 .kv_bytes_per_token = setup.kv_bytes_per_token,
                 .kv_pool_tokens = int64_t{setup.scheduler.num_pages} * kPageSize * config.ep_size,
                 .numerics_id = fmt::format("{}-kv-{}", ranks[0].ops->numerics_id(), dtype_name(setup.kv_dtype)),
                 .model_hash = made_up ? "made up: " + config.shape : model_hash(checkpoint)};
  return start_engine(std::move(info), setup.scheduler, start_rank_workers(model, std::move(ranks)),
                      config.prefill_source);
}

}  // namespace moectl
