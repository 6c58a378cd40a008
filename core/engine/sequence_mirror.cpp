#include "core/engine/sequence_mirror.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/engine/sampler.h"

namespace moectl {

ChunkMirrors SequenceMirrors::apply(const RankStepPlan& plan) {
  for (const uint64_t seq : plan.ended) CHECK(mirrors_.erase(seq) == 1, "sequence {} ends, but has no mirror", seq);
  ChunkMirrors result;
  for (const Chunk& chunk : plan.chunks) {
    SequenceMirror& mirror = find_or_start(chunk);
    CHECK(chunk.num_old_pages == int(mirror.pages.size()), "sequence {}: {} pages sent, the mirror has {}", chunk.seq,
          chunk.num_old_pages, mirror.pages.size());
    mirror.pages.insert(mirror.pages.end(), chunk.new_pages.begin(), chunk.new_pages.end());
    mirror.output_ids.insert(mirror.output_ids.end(), chunk.new_output_ids.begin(), chunk.new_output_ids.end());
    check_chunk(chunk, mirror);
    result.push_back(mirrors_.at(chunk.seq));
  }
  return result;
}

SequenceMirror& SequenceMirrors::find_or_start(const Chunk& chunk) {
  std::shared_ptr<SequenceMirror>& mirror = mirrors_[chunk.seq];
  CHECK((mirror != nullptr) != chunk.start.has_value(), "sequence {} {}", chunk.seq,
        mirror ? "starts twice" : "has no mirror");
  if (chunk.start) {
    check_sampling_params(chunk.start->sampling, vocab_size_);
    check_ids(chunk.start->prompt_ids);
    check_ids(chunk.start->eos_token_ids);
    mirror = std::make_shared<SequenceMirror>();
    mirror->start = *chunk.start;
  }
  return *mirror;
}

void SequenceMirrors::check_ids(std::span<const int32_t> ids) const {
  for (const int32_t id : ids) CHECK(id >= 0 && id < vocab_size_, "token id {} of {}", id, vocab_size_);
}

void SequenceMirrors::check_chunk(const Chunk& chunk, const SequenceMirror& mirror) const {
  CHECK(chunk.num_drafts == 0, "speculative decoding is not supported yet");
  CHECK(chunk.num_tokens() > 0 && chunk.end() <= int64_t(mirror.pages.size()) * page_size_,
        "sequence {}: tokens [{}, {}) in {} pages", chunk.seq, chunk.begin, chunk.end(), mirror.pages.size());
  for (const PageId page : chunk.new_pages) CHECK(page >= 0 && page < num_pages_, "page {} of {}", page, num_pages_);
  check_ids(chunk.new_output_ids);
  const std::span<const int32_t> ids = chunk.token_ids;
  check_ids(ids.first(ids.size() - (ids.back() < 0 ? 1 : 0)));
  if (chunk.next_token_id != -1) check_ids({&chunk.next_token_id, 1});
  const bool scores_last = chunk.num_prompt_logits() > 0 && chunk.prompt_logits_end == chunk.end();
  const bool needs_next = scores_last || chunk.mtp_end == chunk.end();
  CHECK(chunk.next_token_id != -1 || !needs_next, "sequence {}: the token at {} is needed and not known", chunk.seq,
        chunk.end());
}

void make_batch(const RankStepPlan& plan, const ChunkMirrors& mirrors, Batch& batch) {
  batch.token_ids.clear();
  batch.positions.clear();
  batch.seq_idx.clear();
  batch.logits_rows.clear();
  batch.max_pages = 0;
  for (const auto& mirror : mirrors) batch.max_pages = std::max(batch.max_pages, int(mirror->pages.size()));
  batch.page_table.assign(plan.chunks.size() * size_t(batch.max_pages), 0);
  for (size_t s = 0; s < plan.chunks.size(); ++s) {
    const Chunk& chunk = plan.chunks[s];
    std::ranges::copy(mirrors[s]->pages, batch.page_table.begin() + long(s) * batch.max_pages);
    for (int position = chunk.begin; position < chunk.end(); ++position) {
      const bool scores = position >= chunk.prompt_logits_begin && position < chunk.prompt_logits_end;
      if (scores || (chunk.sample && position == chunk.end() - 1)) batch.logits_rows.push_back(batch.num_tokens());
      batch.token_ids.push_back(chunk.token_at(position));
      batch.positions.push_back(position);
      batch.seq_idx.push_back(int32_t(s));
    }
  }
}

void make_mtp_batch(const RankStepPlan& plan, const Batch& batch, Batch& mtp_batch, std::vector<int32_t>& rows) {
  mtp_batch.token_ids.clear();
  mtp_batch.positions.clear();
  mtp_batch.seq_idx.clear();
  mtp_batch.page_table = batch.page_table;
  mtp_batch.max_pages = batch.max_pages;
  rows.clear();
  int first_row = 0;
  for (size_t s = 0; s < plan.chunks.size(); ++s) {
    const Chunk& chunk = plan.chunks[s];
    for (int position = chunk.begin; position < chunk.mtp_end; ++position) {
      rows.push_back(first_row + position - chunk.begin);
      mtp_batch.token_ids.push_back(chunk.token_at(position + 1));
      mtp_batch.positions.push_back(position);
      mtp_batch.seq_idx.push_back(int32_t(s));
    }
    first_row += chunk.num_tokens();
  }
}

}  // namespace moectl
