// The data of one step, from plan to emissions. All of it is plain data: a plan holds everything by value, so a rank
// may run on another thread, in another process or on another node (rank_handle.h, step_codec.h).
//
//   data                        owner and thread                                memory
//   --------------------------  ----------------------------------------------  -------------------------------------
//   GenerateRequest             caller -> inbox (mutex) -> scheduler thread     host
//     | Scheduler::submit
//   Sequence (sequence.h)       Scheduler; scheduler thread only                host: ids, page ids, sampling params
//     | Scheduler::plan
//   StepPlan                    EngineImpl keeps it until complete()            host
//     | RankHandle::launch      copied, or sent as bytes, to each rank of the TP group
//   RankStepPlan                rank                                            host
//     | SequenceMirrors::apply
//   SequenceMirror              rank; rank thread only: pages, sampling state   host
//     | make_batch, SamplingRowMaker
//   Batch, SamplingRow          rank; rank thread                               host, then device (one upload per step)
//     | Model::forward
//   logits, KV pages            rank                                            device; on the CPU backend host
//     | Sampler or DeviceSampler
//   RankStepResult              rank -> EngineImpl (RankHandle::wait)           device, then host (one copy per step)
//     | Scheduler::complete
//   Emission, JobProgress       scheduler thread -> the request's sink          host
//
// A plan speaks in deltas: the first chunk of a sequence on a rank carries its SequenceStart and all its pages and
// output tokens, later chunks only what was added since the plan before. RankStepPlan::ended drops a mirror. A
// preempted sequence ends, and starts anew when it is readmitted, on any rank. Plans reach a rank complete and in
// order.
//
// With two steps in flight (SchedulerConfig::max_steps_in_flight) step n + 1 is planned and launched before the results
// of step n are known. Its unknown input tokens are references to rows of step n, resolved on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/engine/expert_load.h"
#include "core/engine/types.h"
#include "core/kv/page_pool.h"
#include "core/pd/prefill_source.h"

namespace moectl {

// ------------------------------------------------------------------------------------------------ plan

// State of a sequence that does not change while it is on a rank.
struct SequenceStart {
  SamplingParams sampling;
  int num_prompt_tokens = 0;
  std::vector<int32_t> prompt_ids;     // where penalties read the prompt, else empty
  std::vector<int32_t> eos_token_ids;  // where min_tokens masks them, else empty
  bool operator==(const SequenceStart&) const = default;
};

// The rows of one sequence in one step: its tokens at positions [begin, end()).
struct Chunk {
  uint64_t seq = 0;  // Sequence::handle
  int begin = 0;
  // [num_tokens()], one id per row. Negative, in the last row before the drafts only: -1 - r stands for the token
  // sampled from row r of the logits of the step before, which the host does not know yet.
  std::vector<int32_t> token_ids;
  int num_drafts = 0;           // rows at the end that hold unverified draft tokens; not supported yet: 0
  int32_t next_token_id = -1;   // at position end(); -1: not known
  bool sample = false;          // the logits of the last row, and of drafts, give the next tokens
  int prompt_logits_begin = 0;  // positions [prompt_logits_begin, prompt_logits_end): their logits score the prompt
  int prompt_logits_end = 0;    // token after them
  int mtp_end = 0;              // positions [begin, mtp_end): the MTP module's KV is computed too

  // What changed since the sequence's chunk before on this rank.
  std::optional<SequenceStart> start;  // set: its first chunk since its admission
  int num_old_pages = 0;               // pages that the rank knows; new_pages follow them
  std::vector<PageId> new_pages;
  std::vector<int32_t> new_output_ids;  // output tokens that became known

  int num_tokens() const { return int(token_ids.size()); }
  int end() const { return begin + num_tokens(); }
  int num_prompt_logits() const { return prompt_logits_end - prompt_logits_begin; }
  int num_logits() const { return num_prompt_logits() + (sample ? 1 + num_drafts : 0); }
  // The token at a position of [begin, end()].
  int32_t token_at(int position) const {
    return position == end() ? next_token_id : token_ids[size_t(position - begin)];
  }
  bool operator==(const Chunk&) const = default;
};

// Of one data-parallel rank: all ranks of its TP group execute it.
struct RankStepPlan {
  std::vector<uint64_t> ended;  // sequences that left this rank: their mirrors are dropped before the chunks are read
  std::vector<Chunk> chunks;    // one per sequence; rows and logits stand in this order
  bool compute = true;          // false, for all ranks alike: no step is computed, the plan only reads the load
  bool read_expert_load = false;
  bool operator==(const RankStepPlan&) const = default;
};

struct StepPlan {
  std::vector<RankStepPlan> ranks;  // an idle rank takes part with an empty batch
  bool empty() const {              // not launched
    return std::ranges::all_of(ranks, [](const RankStepPlan& rank) { return rank.chunks.empty(); });
  }
};

// ------------------------------------------------------------------------------------------------ results

struct ChunkResult {
  std::vector<GenerateOutput::Token> prompt_logprobs;  // for [prompt_logits_begin, prompt_logits_end)
  // When Chunk::sample: the accepted draft tokens and the one sampled after them. Without drafts exactly one.
  std::vector<GenerateOutput::Token> tokens;
  std::optional<Error> error;  // this request ends, the others continue
};

// A rank that failed is lost: it has aborted its communicator and gives no more results.
struct RankFailure {
  std::string what;
  bool by_peer = false;  // caused by the failure of a peer, whose own message names the cause
};

struct RankStepResult {
  // One per chunk of the plan, in its order; none from TP ranks other than the first, which have the same tokens.
  std::vector<ChunkResult> chunks;
  // On the device's clock.
  double busy_seconds = 0;  // from the beginning of the step to its end
  double idle_seconds = 0;  // since the end of the step before
  std::optional<ExpertLoad>
      expert_load;                     // RankStepPlan::read_expert_load: of this rank's tokens, up to this step's end
  std::optional<RankFailure> failure;  // set: nothing else is
};

struct StepResult {
  std::vector<RankStepResult> ranks;  // by data-parallel rank: of the first rank of its TP group
};

// ------------------------------------------------------------------------------------------------ emissions

struct Emission {
  uint64_t handle = 0;
  GenerateOutput output;
};

struct JobProgress {
  uint64_t handle = 0;
  PrefillProgress progress;
};

}  // namespace moectl
