// A rank's mirrors and the rows made of a plan.
#include "core/engine/sequence_mirror.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace moectl {
namespace {

constexpr int kNumPages = 8, kTestPageSize = 4;
constexpr int32_t kVocab = 50;

SequenceMirrors mirrors() {
  return {kNumPages, kTestPageSize, kVocab};
}

Chunk first_chunk(uint64_t seq, std::vector<int32_t> ids, std::vector<PageId> pages) {
  return {.seq = seq,
          .token_ids = std::move(ids),
          .start = SequenceStart{.num_prompt_tokens = 3},
          .new_pages = std::move(pages)};
}

TEST(SequenceMirrors, GrowByDeltas) {
  SequenceMirrors m = mirrors();
  const auto before = m.apply({.chunks = {first_chunk(1, {10, 11, 12}, {5})}});
  const auto after = m.apply({.chunks = {{.seq = 1,
                                          .begin = 3,
                                          .token_ids = {13, 14},
                                          .num_old_pages = 1,
                                          .new_pages = {2},
                                          .new_output_ids = {13, 14}}}});
  EXPECT_EQ(after[0]->pages, (std::vector<PageId>{5, 2}));
  EXPECT_EQ(after[0]->output_ids, (std::vector<int32_t>{13, 14}));
  EXPECT_EQ(before[0], after[0]) << "one mirror per sequence";
}

TEST(SequenceMirrors, EndedSequencesStayForStepsInFlightOnly) {
  SequenceMirrors m = mirrors();
  const auto in_flight = m.apply({.chunks = {first_chunk(1, {10}, {5})}});
  const auto again = m.apply({.ended = {1}, .chunks = {first_chunk(1, {20}, {6})}});
  EXPECT_EQ(m.size(), 1);
  EXPECT_EQ(in_flight[0]->pages, std::vector<PageId>{5});
  EXPECT_EQ(again[0]->pages, std::vector<PageId>{6}) << "a readmitted sequence starts anew";
  m.apply({.ended = {1}});
  EXPECT_EQ(m.size(), 0);
}

TEST(SequenceMirrors, PlansThatDoNotContinueAreRefused) {
  const auto refused = [](auto change) {
    SequenceMirrors m = mirrors();
    m.apply({.chunks = {first_chunk(1, {10, 11, 12}, {5})}});
    RankStepPlan plan{.chunks = {{.seq = 1, .begin = 3, .token_ids = {13}, .mtp_end = 3, .num_old_pages = 1}}};
    change(plan, plan.chunks[0]);
    try {
      m.apply(plan);
      return false;
    } catch (const Error&) {
      return true;
    }
  };
  EXPECT_FALSE(refused([](RankStepPlan&, Chunk&) {}));
  EXPECT_TRUE(refused([](RankStepPlan& p, Chunk&) { p.ended = {2}; })) << "an unknown sequence ends";
  EXPECT_TRUE(refused([](RankStepPlan&, Chunk& c) { c.seq = 2; })) << "an unknown sequence continues";
  EXPECT_TRUE(refused([](RankStepPlan&, Chunk& c) { c.start = SequenceStart{}; })) << "it starts twice";
  EXPECT_TRUE(refused([](RankStepPlan&, Chunk& c) { c.num_old_pages = 0; })) << "a delta is missing";
  EXPECT_TRUE(refused([](RankStepPlan&, Chunk& c) { c.begin = 4; })) << "no page for the token";
  EXPECT_TRUE(refused([](RankStepPlan&, Chunk& c) { c.new_pages = {kNumPages}; }));
  EXPECT_TRUE(refused([](RankStepPlan&, Chunk& c) { c.token_ids = {kVocab}; }));
  EXPECT_TRUE(refused([](RankStepPlan&, Chunk& c) { c.new_output_ids = {kVocab}; }));
  EXPECT_TRUE(refused([](RankStepPlan&, Chunk& c) { c.mtp_end = 4; })) << "the token after the row is not known";
  EXPECT_FALSE(refused([](RankStepPlan&, Chunk& c) { c.mtp_end = 4, c.next_token_id = 9; }));
  EXPECT_TRUE(refused([](RankStepPlan& p, Chunk&) {
    p.chunks.push_back(first_chunk(2, {1}, {0}));
    p.chunks[1].start->sampling.logit_bias = {{kVocab, 1.0f}};
  }));
  EXPECT_TRUE(refused([](RankStepPlan& p, Chunk&) {
    p.chunks.push_back(first_chunk(2, {1}, {0}));
    p.chunks[1].start->prompt_ids = {1, 2, kVocab};
  }));
}

TEST(MakeBatch, RowsOfAPlan) {
  SequenceMirrors m = mirrors();
  Chunk scored = first_chunk(1, {10, 11, 12}, {5});
  scored.next_token_id = 13;
  scored.prompt_logits_begin = 1;
  scored.prompt_logits_end = 3;
  scored.mtp_end = 3;
  Chunk sampled = first_chunk(2, {20, 21, 22, 23, -1 - 4}, {1, 7});
  sampled.sample = true;
  sampled.mtp_end = 2;
  const RankStepPlan plan{.chunks = {scored, sampled}};
  Batch batch, mtp_batch;
  make_batch(plan, m.apply(plan), batch);
  EXPECT_EQ(batch.token_ids, (std::vector<int32_t>{10, 11, 12, 20, 21, 22, 23, -5}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 0, 1, 2, 3, 4}));
  EXPECT_EQ(batch.seq_idx, (std::vector<int32_t>{0, 0, 0, 1, 1, 1, 1, 1}));
  EXPECT_EQ(batch.max_pages, 2);
  EXPECT_EQ(batch.page_table, (std::vector<int32_t>{5, 0, 1, 7}));
  EXPECT_EQ(batch.logits_rows, (std::vector<int32_t>{1, 2, 7}));
  std::vector<int32_t> rows;
  make_mtp_batch(plan, batch, mtp_batch, rows);
  EXPECT_EQ(rows, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(mtp_batch.token_ids, (std::vector<int32_t>{11, 12, 13, 21, 22})) << "the token after each row";
  EXPECT_EQ(mtp_batch.positions, (std::vector<int32_t>{0, 1, 2, 0, 1}));
  EXPECT_EQ(mtp_batch.seq_idx, (std::vector<int32_t>{0, 0, 0, 1, 1}));
  EXPECT_EQ(mtp_batch.page_table, batch.page_table);
}

}  // namespace
}  // namespace moectl
