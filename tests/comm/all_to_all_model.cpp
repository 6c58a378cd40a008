#include "tests/comm/all_to_all_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/base/check.h"

namespace moectl::test {
namespace {

using Model = AllToAllModel;
constexpr int kMaxRanks = Model::kMaxRanks, kNumKinds = Model::kNumKinds;
const char* const kKindNames[] = {"choices", "tokens", "results"};

// What a rank does, in order. kPoison: the reader is done with its slots, and stores no number (0) into them.
struct Step {
  enum Op : uint8_t { kStore, kPoison, kSignal, kWait, kRead, kEnd } op = kEnd;
  Model::Kind kind = Model::kChoices;
  uint8_t number = 0;
  bool is_issued() const { return op <= kSignal; }  // becomes visible later
};

std::vector<Step> program_of(const Model& m) {
  std::vector<Step> steps;
  for (uint8_t n = 1; n <= m.num_all_to_alls; ++n) {
    const auto add = [&](Step::Op op, Model::Kind kind) {
      if (op == Step::kWait && kind == m.omitted_wait) return;
      if (kind == Model::kChoices && (op == Step::kSignal || op == Step::kWait) && !m.choices_have_a_signal) return;
      steps.push_back({op, kind, n});
    };
    add(Step::kStore, Model::kChoices);
    add(Step::kStore, Model::kTokens);
    add(Step::kSignal, Model::kChoices);
    add(Step::kSignal, Model::kTokens);
    add(Step::kWait, Model::kChoices);
    if (m.choices_have_a_signal) add(Step::kRead, Model::kChoices);  // rows are numbered
    add(Step::kWait, Model::kTokens);
    add(Step::kRead, Model::kTokens);
    add(Step::kPoison, Model::kTokens);
    add(Step::kRead, Model::kChoices);  // where results go
    add(Step::kPoison, Model::kChoices);
    if (m.omit_combine) continue;
    add(Step::kStore, Model::kResults);
    add(Step::kSignal, Model::kResults);
    add(Step::kWait, Model::kResults);
    add(Step::kRead, Model::kResults);
    add(Step::kPoison, Model::kResults);
  }
  steps.push_back({});
  return steps;
}

constexpr uint8_t kNever = 0xff;

// Compared and hashed by its bytes: it has no padding.
struct State {
  enum Status : uint8_t { kRunning, kFailed, kStopped };
  struct Rank {
    uint32_t pending = 0;  // bit_of: issued, not yet visible
    uint8_t step = 0;      // of the program
    uint8_t failed_at = kNever;
    uint8_t status = kRunning;
    uint8_t unused = 0;
  };
  struct Slot {
    uint8_t number : 7 = 0;
    uint8_t is_needed : 1 = 0;  // its reader has not read it yet
  };
  Rank ranks[kMaxRanks];
  Slot slots[kNumKinds][kMaxRanks][kMaxRanks];  // of the second rank, stored by the third
  uint8_t aborted = 0;

  bool operator==(const State& o) const { return std::memcmp(this, &o, sizeof o) == 0; }
};
static_assert(sizeof(State) == 52);

uint32_t bit_of(Step::Op op, int kind, int peer) {
  return 1u << ((int(op) * kNumKinds + kind) * kMaxRanks + peer);
}
Step::Op op_of(int bit) {
  return Step::Op(bit / kMaxRanks / kNumKinds);
}
Model::Kind kind_of(int bit) {
  return Model::Kind(bit / kMaxRanks % kNumKinds);
}
constexpr uint32_t kAllPeers = (1u << kMaxRanks) - 1;
uint32_t bits_of(Step::Op op, int kind) {
  return kAllPeers << (int(op) * kNumKinds + kind) * kMaxRanks;
}

uint64_t hash_of(const State& s) {
  std::array<uint64_t, (sizeof(State) + 7) / 8> words{};
  std::memcpy(words.data(), &s, sizeof s);
  uint64_t h = 0;
  for (uint64_t w : words) {
    h = (h ^ w) * 0x9e3779b97f4a7c15;
    h ^= h >> 29;
  }
  return h;
}

// The states that were found, in the order of a breadth-first search, each with the way to it.
class Found {
 public:
  struct Way {
    uint32_t from;
    uint8_t rank, bit;  // bit: what became visible; 32 and more: Event
  };
  size_t size() const { return states_.size(); }
  const State& state(size_t i) const { return states_[i]; }
  const Way& way(size_t i) const { return ways_[i]; }
  void add(const State& s, Way way) {
    if (2 * states_.size() >= table_.size()) grow();
    Entry& entry = find(s, hash_of(s));
    if (entry.index != kFree) return;
    entry = {uint32_t(hash_of(s)), uint32_t(states_.size())};
    states_.push_back(s);
    ways_.push_back(way);
  }

 private:
  static constexpr uint32_t kFree = ~0u;
  struct Entry {
    uint32_t hash = 0, index = kFree;  // of states_
  };
  Entry& find(const State& s, uint64_t hash) {
    for (size_t i = hash >> 16;; ++i) {
      Entry& entry = table_[i & (table_.size() - 1)];
      if (entry.index == kFree || (entry.hash == uint32_t(hash) && states_[entry.index] == s)) return entry;
    }
  }
  void grow() {
    table_.assign(std::max<size_t>(1024, 2 * table_.size()), {});
    for (size_t i = 0; i < states_.size(); ++i) {
      const uint64_t hash = hash_of(states_[i]);
      find(states_[i], hash) = {uint32_t(hash), uint32_t(i)};
    }
  }
  std::vector<State> states_;
  std::vector<Way> ways_;
  std::vector<Entry> table_;  // open addressing
};

enum Event : uint8_t { kAdvance = 32, kFail, kStop, kAbort };

class Search {
 public:
  explicit Search(const Model& model) : m_(model), program_(program_of(model)) {
    CHECK(m_.num_ranks >= 1 && m_.num_ranks <= kMaxRanks && program_.size() < 0xff, "a model of {} ranks, {} steps",
          m_.num_ranks, program_.size());
    for (auto& of_op : issued_at_[0]) std::ranges::fill(of_op, -1);
    for (size_t i = 0; i < program_.size(); ++i) {
      issued_at_.push_back(issued_at_.back());
      if (program_[i].is_issued()) issued_at_.back()[program_[i].op][program_[i].kind] = int(i);
    }
  }

  Model::Result run() {
    State first;
    for (int r = 0; r < m_.num_ranks; ++r) issue(first, r);
    found_.add(first, {});
    for (at_ = 0; at_ < found_.size() && violation_.empty(); ++at_) visit(found_.state(at_));
    Model::Result result = {int64_t(found_.size()), violation_, {}};
    if (!violation_.empty()) result.trace = trace();
    return result;
  }

 private:
  // Every step brings a rank or a store forward, so that the search ends; and all ranks do where no state is stuck.
  void visit(const State s) {  // a copy: states move when one is added
    bool is_stuck = true;
    for (int r = 0; r < m_.num_ranks; ++r) {
      const State::Rank& rank = s.ranks[r];
      for (uint32_t left = rank.pending; left; left &= left - 1) {
        const int bit = std::countr_zero(left);
        if (!may_become_visible(rank, bit)) continue;
        State next = s;
        become_visible(next, r, bit);
        if (rank.status == State::kRunning) issue(next, r);
        add(next, r, uint8_t(bit));
        // What a stopped rank issued may also never become visible.
        if (rank.status != State::kStopped) is_stuck = false;
      }
      if (rank.status != State::kRunning || step_of(rank).op == Step::kEnd) continue;
      if (advance(s, r)) is_stuck = false;
    }
    if (is_stuck) check_end(s);
    if (violation_.empty()) add_faults(s);
  }

  // Rank 0 stops; the abort.
  void add_faults(const State& s) {
    State stopped = s, aborted = s;
    aborted.aborted = 1;
    if (s.ranks[0].status == State::kRunning) {
      end(stopped, 0, State::kStopped);
      if (m_.stop) add(stopped, 0, kStop);
      stopped.aborted = 1;
      if (m_.abort && !s.aborted) add(stopped, 0, kStop);
    }
    if (m_.abort && !s.aborted) add(aborted, 0, kAbort);
  }

  // A wait or a read. Whether there was one that could happen.
  bool advance(const State& s, int r) {
    const Step step = step_of(s.ranks[r]);
    if (step.is_issued()) return false;  // until what it issued before is visible
    const bool failed_before = s.ranks[r].failed_at != kNever;
    if (step.op == Step::kRead && !failed_before) check_read(s, r, step);
    if (step.op == Step::kRead || failed_before) {
      go_on(s, r, kAdvance);
      return true;
    }
    const bool has_signals = all_signaled(s, r, step);
    if (has_signals) go_on(s, r, kAdvance);
    // A wait whose signals are there may see an abort first.
    const bool fails = has_signals ? s.aborted && !m_.ignore_abort : may_fail(s);
    if (fails) fail(s, r);
    return has_signals || fails;
  }

  void go_on(State next, int r, Event event) {
    ++next.ranks[r].step;
    issue(next, r);
    add(next, r, event);
  }

  void fail(State next, int r) {
    next.ranks[r].failed_at = next.ranks[r].step;
    end(next, r, m_.after_failure == Model::kEnd ? State::kFailed : State::kRunning);
    if (m_.after_failure == Model::kEnd)
      add(next, r, kFail);
    else
      go_on(next, r, kFail);
  }

  bool may_fail(const State& s) const {
    return (s.aborted && !m_.ignore_abort) || (m_.stop && s.ranks[0].status == State::kStopped) || m_.timeouts;
  }

  void check_read(const State& s, int r, const Step& read) {
    for (int peer = 0; peer < m_.num_ranks; ++peer) {
      const int number = s.slots[read.kind][r][peer].number;
      if (peer != r && number != read.number)
        violated(fmt::format("rank {} reads {} of all-to-all {} from rank {} in all-to-all {}", r,
                             kKindNames[read.kind], number, peer, read.number));
    }
  }

  // The stores, signals and poison that come next.
  void issue(State& s, int r) {
    State::Rank& rank = s.ranks[r];
    while (step_of(rank).is_issued()) {
      const Step step = step_of(rank);
      // Stores to one place keep their order.
      const uint32_t before = rank.pending & bits_of(step.op, step.kind);
      if (before && (step.op == Step::kSignal || m_.visibility == Model::kAnyTime)) return;
      flush(s, r, before);
      ++rank.step;
      if (step.op == Step::kSignal && !may_signal(rank)) continue;
      for (int peer = 0; peer < m_.num_ranks; ++peer) {
        if (peer == r) continue;
        if (step.op == Step::kPoison) s.slots[step.kind][r][peer].is_needed = 0;
        rank.pending |= bit_of(step.op, step.kind, peer);
      }
      if (step.op != Step::kSignal && m_.visibility == Model::kEarliest) flush(s, r, bits_of(step.op, step.kind));
    }
  }

  // The pending stores and poison that a signal comes after.
  uint32_t released_by(const State::Rank& rank, Model::Kind kind) const {
    if (kind == m_.unordered_signal) return 0;
    const int signaled_at = issued_at(rank, Step::kSignal, kind);
    uint32_t bits = 0;
    for (const Step::Op data : {Step::kStore, Step::kPoison})
      for (int k = 0; k < kNumKinds; ++k) {
        if (kind == Model::kChoices && data == Step::kStore && k == Model::kTokens) continue;  // it waits for no token
        if (issued_at(rank, data, k) < signaled_at) bits |= bits_of(data, k);
      }
    return rank.pending & bits;
  }

  bool may_become_visible(const State::Rank& rank, int bit) const {
    const bool is_signal = op_of(bit) == Step::kSignal;
    if (m_.visibility == Model::kAnyTime) return !is_signal || !released_by(rank, kind_of(bit));
    return is_signal;  // what it comes after becomes visible with it
  }

  void become_visible(State& s, int r, int bit) {
    if (op_of(bit) == Step::kSignal)
      flush(s, r, released_by(s.ranks[r], kind_of(bit)));
    else
      write(s, r, bit);
    s.ranks[r].pending &= ~(1u << bit);
  }

  void flush(State& s, int r, uint32_t stores) {
    for (uint32_t left = s.ranks[r].pending & stores; left; left &= left - 1) write(s, r, std::countr_zero(left));
    s.ranks[r].pending &= ~stores;
  }

  // A store or poison of rank r reaches its slot.
  void write(State& s, int r, int bit) {
    const State::Rank& rank = s.ranks[r];
    const bool is_store = op_of(bit) == Step::kStore;
    const int peer = bit % kMaxRanks, reader = is_store ? peer : r, at = issued_at(rank, op_of(bit), kind_of(bit));
    State::Slot& slot = s.slots[kind_of(bit)][reader][is_store ? r : peer];
    if (slot.is_needed)
      violated(fmt::format("rank {} stores over {} of all-to-all {} that rank {} still needs", r,
                           kKindNames[kind_of(bit)], int(slot.number), reader));
    // After a failure a rank computes without what it waited for: no number.
    slot.number = is_store && at < rank.failed_at ? program_[size_t(at)].number : 0;
    slot.is_needed = is_store && s.ranks[peer].status == State::kRunning && s.ranks[peer].failed_at == kNever;
  }

  // The rank reads nothing more.
  void end(State& s, int r, State::Status status) const {
    s.ranks[r].status = status;
    for (auto& of_kind : s.slots)
      for (State::Slot& slot : of_kind[r]) slot.is_needed = 0;
  }

  bool all_signaled(const State& s, int r, const Step& wait) const {
    for (int peer = 0; peer < m_.num_ranks; ++peer) {
      if (peer == r) continue;
      const State::Rank& from = s.ranks[peer];
      const int at = issued_at(from, Step::kSignal, wait.kind);
      const int pending = (from.pending & bit_of(Step::kSignal, wait.kind, r)) != 0;
      if (at < 0 || program_[size_t(at)].number - pending < wait.number) return false;
    }
    return true;
  }

  // Nothing can happen any more but faults: every rank must have come to its end.
  void check_end(const State& s) {
    for (int r = 0; r < m_.num_ranks; ++r) {
      const State::Rank& rank = s.ranks[r];
      if (rank.status == State::kRunning && step_of(rank).op != Step::kEnd)
        violated(fmt::format("rank {} waits forever for {} of all-to-all {}", r, kKindNames[step_of(rank).kind],
                             step_of(rank).number));
    }
  }

  Step step_of(const State::Rank& rank) const { return program_[rank.step]; }
  bool may_signal(const State::Rank& rank) const {
    return rank.failed_at == kNever || m_.after_failure != Model::kStore;
  }
  // The latest of the rank's steps so far that issued such a thing; -1: none.
  int issued_at(const State::Rank& rank, Step::Op op, int kind) const {
    const bool until_failure = op == Step::kSignal && !may_signal(rank);
    return issued_at_[until_failure ? rank.failed_at : rank.step][op][kind];
  }
  void violated(std::string what) {
    if (violation_.empty()) violation_ = std::move(what);
  }
  void add(const State& next, int rank, uint8_t bit) {
    if (!violation_.empty()) {
      if (last_.empty()) last_ = describe({uint32_t(at_), uint8_t(rank), bit});
      return;
    }
    found_.add(next, {uint32_t(at_), uint8_t(rank), bit});
  }

  std::string describe(const Found::Way& way) const {
    static const char* const kIssued[] = {"store of", "poison of", "signal of"};
    if (way.bit < kAdvance)
      return fmt::format("rank {}: {} {} for rank {} becomes visible", way.rank, kIssued[op_of(way.bit)],
                         kKindNames[kind_of(way.bit)], way.bit % kMaxRanks);
    if (way.bit == kAbort) return "abort";
    if (way.bit == kStop) return fmt::format("rank {} stops", way.rank);
    const Step step = step_of(found_.state(way.from).ranks[way.rank]);
    return fmt::format("rank {}: {} {} of all-to-all {}{}", way.rank, step.op == Step::kWait ? "wait for" : "read",
                       kKindNames[step.kind], step.number, way.bit == kFail ? " fails" : "");
  }
  std::vector<std::string> trace() const {
    std::vector<std::string> lines;
    if (!last_.empty()) lines.push_back(last_);
    for (size_t i = at_ - 1; i > 0; i = found_.way(i).from) lines.push_back(describe(found_.way(i)));
    std::ranges::reverse(lines);
    return lines;
  }

  const Model m_;
  const std::vector<Step> program_;
  using IssuedAt = std::array<std::array<int, kNumKinds>, Step::kSignal + 1>;
  std::vector<IssuedAt> issued_at_ = std::vector<IssuedAt>(1);  // [step]
  Found found_;
  size_t at_ = 0;          // the state that is visited
  std::string violation_;  // the first one
  std::string last_;       // the step in which it happened; empty: no step, ranks are stuck
};

}  // namespace

AllToAllModel::Result AllToAllModel::search() const {
  return Search(*this).run();
}

}  // namespace moectl::test
