// AllToAllModel: the protocol of the expert all-to-all (kernels/expert_all_to_all.h) as a transition system that is
// small enough to visit every state of it. It knows the order of stores, signals and waits, and no data: a slot holds
// the number of the all-to-all whose value it holds.
//
// Memory: a store or signal is first issued, and becomes visible later: stores in any order; a signal after all stores
// that its rank issued before it (release), signals in any order among each other. Issuing is immediate: what a delay
// before it could change, a delay of its visibility changes, too. Waits and reads happen at any time after what
// precedes them. The buffers exist once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moectl::test {

struct AllToAllModel {
  static constexpr int kMaxRanks = 3;
  enum Kind : uint8_t { kChoices, kTokens, kResults, kNumKinds };  // of slots and their signals

  int num_ranks = 2, num_all_to_alls = 1;
  bool choices_have_a_signal = true;  // DispatchArgs::low_latency

  // When stores become visible: at any time before their signal; or all of them as early as they can, or all as late.
  // A defect shows in one of these two if it shows at all, in far fewer states: stores change no rank's steps, and a
  // store does harm to one slot only, either because it comes too early for what its reader still needs (then also when
  // it is issued: the slot is needed until it is not) or too late for a read (then also just before its signal).
  enum Visibility : uint8_t { kAnyTime, kEarliest, kLatest } visibility = kAnyTime;

  // What may happen at any point. Ranks are alike, so the one that stops is always rank 0.
  bool abort = false;     // all ranks are told to end, from outside or by a rank that stops itself
  bool stop = false;      // a rank stops for good; its peers' waits may then time out
  bool timeouts = false;  // waits may time out though every rank goes on: peers may be that late

  // Defects, which the search must find. kNumKinds: none.
  Kind omitted_wait = kNumKinds;
  Kind unordered_signal = kNumKinds;  // may become visible before the stores that it stands for
  bool omit_combine = false;          // one dispatch follows the other
  bool ignore_abort = false;          // waits do not end with an abort
  // What a rank does with what it computes after a wait of it failed.
  enum AfterFailure : uint8_t { kEnd, kStore, kStoreAndSignal } after_failure = kEnd;

  struct Result {
    int64_t num_states = 0;
    std::string violation;           // empty: none
    std::vector<std::string> trace;  // the shortest way to it
  };
  // Visits every state.
  Result search() const;
};

}  // namespace moectl::test
