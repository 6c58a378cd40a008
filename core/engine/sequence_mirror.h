// SequenceMirror: what a rank keeps of a sequence between steps, made of the deltas in its plans; and the model's rows
// of a plan. Rank thread only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "core/engine/step.h"
#include "core/model/batch.h"

namespace moectl {

struct SequenceMirror {
  SequenceStart start;
  std::vector<PageId> pages;
  std::vector<int32_t> output_ids;  // known output tokens
};

// The mirror of each chunk of a plan. A step in flight shares the mirrors that it needs for its results.
using ChunkMirrors = std::vector<std::shared_ptr<const SequenceMirror>>;

class SequenceMirrors {
 public:
  SequenceMirrors(int num_pages, int page_size, int32_t vocab_size)
      : num_pages_(num_pages), page_size_(page_size), vocab_size_(vocab_size) {}

  // Drops the sequences that ended, starts those that begin, adds the deltas of the others. Throws Error for a plan
  // that does not continue the plans before it, and for ids out of range: a plan may come from another process.
  ChunkMirrors apply(const RankStepPlan& plan);
  int size() const { return int(mirrors_.size()); }

 private:
  SequenceMirror& find_or_start(const Chunk& chunk);
  void check_ids(std::span<const int32_t> ids) const;
  void check_chunk(const Chunk& chunk, const SequenceMirror& mirror) const;

  const int num_pages_, page_size_;
  const int32_t vocab_size_;
  std::map<uint64_t, std::shared_ptr<SequenceMirror>> mirrors_;
};

// The model's rows of a plan; a sequence's pages are one row of the page table.
void make_batch(const RankStepPlan& plan, const ChunkMirrors& mirrors, Batch& batch);
// The MTP module's rows of the same plan, each with the token after its position; `rows`: their rows in `batch`.
void make_mtp_batch(const RankStepPlan& plan, const Batch& batch, Batch& mtp_batch, std::vector<int32_t>& rows);

}  // namespace moectl
