// StepInputs: which rows of a step are prefill chunks for expanded MLA.
#include "core/model/step_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moectl {
namespace {

using testing::ElementsAre;
using testing::FieldsAre;

TEST(StepInputs, FindsPrefillChunks) {
  constexpr int64_t kMinChunk = 128;
  const auto ops = make_ops({.device = "cpu"});
  StepInputs inputs({2048, 16, 16, 4096}, ops->device(), kMinChunk);
  Batch batch;
  batch.max_pages = 64;
  batch.page_table.assign(size_t(6 * batch.max_pages), 0);
  const auto add = [&](int seq, int first, int num) {
    for (int i = 0; i < num; ++i) {
      batch.token_ids.push_back(1);
      batch.positions.push_back(first + i);
      batch.seq_idx.push_back(seq);
    }
  };
  add(0, 900, 1);
  add(1, 0, int(kMinChunk) - 1);
  add(2, 7, int(kMinChunk));
  add(3, 7 + int(kMinChunk), int(kMinChunk));  // goes on where the one before ends, but is another sequence
  add(4, 0, 200);
  add(4, 201, 300);  // position 200 is missing
  add(5, 3, 1);
  inputs.set(batch, batch.num_tokens(), 0, batch.max_pages, {});
  const int64_t n = kMinChunk;
  EXPECT_THAT(inputs.prefill_chunks, ElementsAre(FieldsAre(n, n, 2, 7), FieldsAre(2 * n, n, 3, 7 + n),
                                                 FieldsAre(3 * n, 200, 4, 0), FieldsAre(3 * n + 200, 300, 4, 201)));
  batch = {};
  batch.max_pages = 64;
  batch.page_table.assign(64, 0);
  add(0, 5, 1);
  inputs.set(batch, 8, 0, batch.max_pages, {});
  EXPECT_TRUE(inputs.prefill_chunks.empty());
}

}  // namespace
}  // namespace moectl
