// Parallelism: what follows from the sizes that are given, what is refused and with which advice, and that the slices
// of the ranks tile the model.
#include "core/parallel/parallelism.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/parallel/local_dims.h"

namespace moectl {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string refusal(auto&& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadConfig);
    return e.what();
  }
  return "accepted";
}

// 0: not given.
GivenParallelism given(int tp, int dp, int ep) {
  const auto size = [](const char* name, int value) -> std::optional<GivenSize> {
    if (value == 0) return std::nullopt;
    return GivenSize{value, fmt::format("{}={}", name, value)};
  };
  return {.tp_size = size("TP", tp), .dp_size = size("DP", dp), .ep_size = size("EP", ep)};
}

TEST(Parallelism, WhatIsNotGivenFollows) {
  const auto sizes = [](int tp, int dp, int ep) {
    const Parallelism p = resolve_parallelism(given(tp, dp, ep));
    return std::array{p.tp_size, p.dp_size, p.ep_size};
  };
  EXPECT_EQ(sizes(0, 0, 0), (std::array{1, 1, 1}));
  EXPECT_EQ(sizes(0, 0, 8), (std::array{1, 8, 8}));
  EXPECT_EQ(sizes(0, 4, 0), (std::array{1, 4, 4}));
  EXPECT_EQ(sizes(2, 0, 0), (std::array{2, 1, 2}));
  EXPECT_EQ(sizes(2, 0, 8), (std::array{2, 4, 8}));
  EXPECT_EQ(sizes(2, 4, 0), (std::array{2, 4, 8}));
  EXPECT_EQ(sizes(8, 0, 1), (std::array{8, 1, 1}));
  EXPECT_EQ(sizes(2, 4, 1), (std::array{2, 4, 1}));
  EXPECT_EQ(sizes(2, 4, 8), (std::array{2, 4, 8}));
  EXPECT_EQ(resolve_parallelism(given(0, 0, 6)), expert_parallel(6));
}

TEST(Parallelism, ContradictionsAreRefusedInTheUsersWords) {
  const auto message = [](int tp, int dp, int ep) { return refusal([&] { resolve_parallelism(given(tp, dp, ep)); }); };
  EXPECT_THAT(message(0, 2, 4), HasSubstr("EP=4 contradicts DP=2: the expert parallel size must be TP x DP = 1 x 2"));
  EXPECT_THAT(message(2, 2, 8), HasSubstr("EP=8 contradicts TP=2 and DP=2"));
  EXPECT_THAT(message(4, 0, 6), AllOf(HasSubstr("EP=6 is not a multiple of TP=4"), HasSubstr("use 4 or 8")));
  EXPECT_THAT(message(4, 0, 2), HasSubstr("use 1 or 4"));
  EXPECT_THAT(message(-1, 0, 0), HasSubstr("TP=-1: must be at least 1"));
}

constexpr ModelDims kR1 = {.num_heads = 128,
                           .intermediate_size = 18432,
                           .shared_intermediate_size = 2048,
                           .moe_intermediate_size = 2048,
                           .num_experts = 256,
                           .vocab_size = 129280};

TEST(Parallelism, EveryRuleHasItsMessage) {
  const auto message = [](const Parallelism& p, const ModelDims& model = kR1) {
    return refusal([&] { check_parallelism(p, model); });
  };
  EXPECT_EQ(message({}), "accepted");
  EXPECT_EQ(message({.tp_size = 8, .dp_size = 4, .ep_size = 32}), "accepted");
  EXPECT_EQ(message(expert_parallel(72)), "accepted");
  EXPECT_EQ(message({.tp_size = 2, .dp_size = 2, .ep_size = 4, .devices = {3, 1}, .num_nodes = 2}), "accepted");

  EXPECT_THAT(message({.tp_size = 0}), HasSubstr("--tensor-parallel-size must be at least 1, not 0"));
  EXPECT_THAT(message({.dp_size = 0}), HasSubstr("--data-parallel-size"));
  EXPECT_THAT(message(expert_parallel(-3)), HasSubstr("must be at least 1, not -3"));
  EXPECT_THAT(message({.tp_size = 2, .dp_size = 2, .ep_size = 2}),
              HasSubstr("--ep-size 2 must be TP x DP = 2 x 2 = 4"));
  EXPECT_THAT(message({.num_nodes = 2}), HasSubstr("1 ranks (TP x DP) over 2 nodes"));
  EXPECT_THAT(message({.dp_size = 4, .ep_size = 4, .num_nodes = 2, .node_rank = 2}), HasSubstr("node 2 of 2"));
  EXPECT_THAT(message({.dp_size = 4, .ep_size = 4, .devices = {0, 1, 2}}), HasSubstr("names 3 GPU(s) for 4 rank(s)"));
  EXPECT_THAT(message({.devices = {-1}}), HasSubstr("ordinal"));
  ModelDims dense = kR1;
  dense.num_experts = 0;
  EXPECT_THAT(message(expert_parallel(2), dense), HasSubstr("has no experts"));

  EXPECT_THAT(message({.tp_size = 3, .ep_size = 3}),
              HasSubstr("--tensor-parallel-size 3: it does not divide the model's 128 attention heads; use 2 or 4"));
  EXPECT_THAT(message({.tp_size = 256, .ep_size = 256}), HasSubstr("use 128"));
  const ModelDims gqa = {.num_heads = 12, .num_kv_heads = 6, .intermediate_size = 144, .vocab_size = 1000};
  EXPECT_EQ(message({.tp_size = 3, .ep_size = 1}, gqa), "accepted");
  EXPECT_EQ(message({.tp_size = 12, .ep_size = 1}, gqa), "accepted");  // two ranks per KV head
  EXPECT_THAT(message({.tp_size = 4, .ep_size = 1}, gqa), AllOf(HasSubstr("6 KV heads"), HasSubstr("use 3 or 6")));
  ModelDims narrow = kR1;
  narrow.moe_intermediate_size = 12;
  EXPECT_EQ(message({.tp_size = 8, .ep_size = 8}, narrow), "accepted");
  EXPECT_THAT(message({.tp_size = 8, .ep_size = 1}, narrow),
              HasSubstr("it does not divide moe_intermediate_size 12; use 4"));
  narrow = kR1;
  narrow.shared_intermediate_size = 12;
  EXPECT_THAT(message({.tp_size = 8, .ep_size = 8}, narrow), HasSubstr("shared experts' intermediate_size 12; use 4"));
  narrow = kR1;
  narrow.vocab_size = 9;  // 8 x ceil(9 / 8) rows
  EXPECT_THAT(message({.tp_size = 8, .ep_size = 8}, narrow), HasSubstr("vocabulary of 9"));
}

TEST(Parallelism, WhatCannotRunYetIsRefused) {
  const auto message = [](const Parallelism& p) { return refusal([&] { check_runnable(p); }); };
  EXPECT_EQ(message({}), "accepted");
  EXPECT_EQ(message(expert_parallel(5)), "accepted");
  EXPECT_EQ(message({.tp_size = 2, .dp_size = 2, .ep_size = 4}), "accepted");
  EXPECT_EQ(message({.tp_size = 2, .dp_size = 2}), "accepted");
  EXPECT_THAT(message({.dp_size = 2, .ep_size = 2, .num_nodes = 2}), HasSubstr("2 nodes"));
}

TEST(Parallelism, DevicesBelongToTheRanksOfANode) {
  Parallelism p = {.tp_size = 2, .dp_size = 2, .ep_size = 4, .num_nodes = 2};
  EXPECT_EQ(p.ranks_per_node(), 2);
  EXPECT_EQ(p.device_index(0), 0);
  EXPECT_EQ(p.device_index(3), 1);
  p.devices = {6, 2};
  EXPECT_EQ(p.device_index(0), 6);
  EXPECT_EQ(p.device_index(3), 2);
}

TEST(LocalDims, OneRankHoldsTheWhole) {
  ModelDims gqa = kR1;
  gqa.num_kv_heads = 8;
  const LocalDims want = {.num_heads = 128,
                          .num_kv_heads = 8,
                          .intermediate_size = 18432,
                          .shared_intermediate_size = 2048,
                          .moe_intermediate_size = 2048,
                          .num_local_experts = 256,
                          .vocab_size = 129280};
  EXPECT_EQ(local_dims(gqa, {}, 0, 256), want);
  LocalDims eighth = want;
  eighth.num_local_experts = 32;
  for (int rank = 0; rank < 8; ++rank) EXPECT_EQ(local_dims(gqa, expert_parallel(8), rank, 256), eighth);
  EXPECT_EQ(local_dims(gqa, expert_parallel(72), 71, 288).num_local_experts, 4);
}

// Over the TP ranks of each group, ranges follow each other from 0 to the model's size.
TEST(LocalDims, TpRanksTileTheModel) {
  for (const int kv : {0, 2, 8, 128})
    for (const int vocab : {129280, 1031})
      for (const int tp : {1, 2, 4, 8, 16})
        for (const bool ep : {false, true}) {
          SCOPED_TRACE(fmt::format("TP {}, {} KV heads, vocabulary {}, EP {}", tp, kv, vocab, ep));
          ModelDims model = kR1;
          model.num_kv_heads = kv;
          model.vocab_size = vocab;
          const Parallelism p = {.tp_size = tp, .dp_size = 3, .ep_size = ep ? 3 * tp : 1};
          ASSERT_EQ(tp_fault(p, model), "");
          for (int group = 0; group < 3; ++group) {
            LocalDims end;  // of the ranks so far
            for (int r = 0; r < tp; ++r) {
              const LocalDims d = local_dims(model, p, group * tp + r, (256 + p.ep_size - 1) / p.ep_size * p.ep_size);
              EXPECT_EQ(d.tp_size, tp);
              EXPECT_EQ(d.tp_rank, r);
              EXPECT_EQ(d.splits_experts, tp > 1 && !ep);
              EXPECT_EQ(d.head_begin, end.num_heads);
              EXPECT_EQ(d.intermediate_begin, end.intermediate_size);
              EXPECT_EQ(d.shared_intermediate_begin, end.shared_intermediate_size);
              EXPECT_EQ(d.vocab_begin, end.vocab_size);
              EXPECT_GT(d.vocab_size, 0);
              EXPECT_EQ(d.moe_intermediate_begin, ep ? 0 : end.moe_intermediate_size);
              end.num_heads += d.num_heads;
              end.intermediate_size += d.intermediate_size;
              end.shared_intermediate_size += d.shared_intermediate_size;
              end.moe_intermediate_size += d.moe_intermediate_size;
              end.vocab_size += d.vocab_size;
              if (ep)
                EXPECT_EQ(d.num_local_experts, (256 + 3 * tp - 1) / (3 * tp));
              else
                EXPECT_EQ(d.num_local_experts, 256);
              // The KV heads that the rank's query heads read (GqaAttentionArgs).
              if (kv > 0) {
                EXPECT_EQ(d.kv_head_begin, d.head_begin * kv / 128);
                EXPECT_EQ(d.kv_head_begin + d.num_kv_heads - 1, (d.head_begin + d.num_heads - 1) * kv / 128);
              } else {
                EXPECT_EQ(d.num_kv_heads, 0);
              }
            }
            EXPECT_EQ(end.num_heads, 128);
            EXPECT_EQ(end.intermediate_size, 18432);
            EXPECT_EQ(end.shared_intermediate_size, 2048);
            EXPECT_EQ(end.moe_intermediate_size, ep ? 2048 * tp : 2048);
            EXPECT_EQ(end.vocab_size, vocab);
          }
        }
}

TEST(NearestSizes, BelowAndAbove) {
  EXPECT_EQ(nearest_sizes({1, 2, 4, 8}, 3), "2 or 4");
  EXPECT_EQ(nearest_sizes({1, 2}, 16), "2");
  EXPECT_EQ(nearest_sizes({4}, 3), "4");
}

}  // namespace
}  // namespace moectl
