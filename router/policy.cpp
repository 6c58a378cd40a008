#include "router/policy.h"

#include <fmt/format.h>
#include <algorithm>
#include <tuple>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "router/prefix_index.h"

namespace moectl::router {
namespace {

using Workers = std::span<const PolicyWorker>;
using Prompt = std::vector<BlockHash>;

// Ties go round, so that equal workers share a trickle of requests.
template <class Load>
size_t least(Workers workers, uint64_t turn, Load load) {
  size_t best = turn % workers.size();
  for (size_t i = 1; i < workers.size(); ++i) {
    const size_t other = (turn + i) % workers.size();
    if (load(workers[other]) < load(workers[best])) best = other;
  }
  return best;
}

class LeastRequest final : public Policy {
 public:
  PolicyChoice choose(Workers workers, const Prompt&) override {
    const size_t i = least(workers, turn_++, [](const PolicyWorker& w) { return std::pair(w.requests, w.tokens); });
    return {i, fmt::format("least requests: {:.0f}", workers[i].requests)};
  }

 private:
  uint64_t turn_ = 0;
};

class LeastToken final : public Policy {
 public:
  PolicyChoice choose(Workers workers, const Prompt&) override {
    const size_t i = least(workers, turn_++, [](const PolicyWorker& w) { return std::pair(w.tokens, w.requests); });
    return {i, fmt::format("least tokens: {:.0f}", workers[i].tokens)};
  }

 private:
  uint64_t turn_ = 0;
};

class RoundRobin final : public Policy {
 public:
  PolicyChoice choose(Workers workers, const Prompt&) override { return {turn_++ % workers.size(), "its turn"}; }

 private:
  uint64_t turn_ = 0;
};

// Numbers below `n` from the counter-based generator: the same seed gives the same choices.
class Draw {
 public:
  explicit Draw(uint64_t seed) : seed_(seed) {}
  size_t below(size_t n) { return std::min(n - 1, size_t(uniform_double(seed_, count_++, 0) * double(n))); }

 private:
  uint64_t seed_, count_ = 0;
};

class Random final : public Policy {
 public:
  explicit Random(uint64_t seed) : draw_(seed) {}
  PolicyChoice choose(Workers workers, const Prompt&) override { return {draw_.below(workers.size()), "drawn"}; }

 private:
  Draw draw_;
};

class PowerOfTwo final : public Policy {
 public:
  explicit PowerOfTwo(uint64_t seed) : draw_(seed) {}
  PolicyChoice choose(Workers workers, const Prompt&) override {
    const size_t a = draw_.below(workers.size());
    if (workers.size() == 1) return {a, "the only one"};
    size_t b = draw_.below(workers.size() - 1);
    if (b >= a) ++b;
    const size_t i = workers[b].requests < workers[a].requests ? b : a;
    return {i, fmt::format("the lesser of two drawn: {:.0f} requests", workers[i].requests)};
  }

 private:
  Draw draw_;
};

class PrefixCache final : public Policy {
 public:
  explicit PrefixCache(const PolicyOptions& options)
      : tolerance_(options.prefix_cache_load_tolerance), index_(options.max_prefix_blocks) {}

  PolicyChoice choose(Workers workers, const Prompt& prompt) override {
    double mean = 0;
    for (const PolicyWorker& w : workers) mean += w.tokens / double(workers.size());
    // Best by (blocks, then less load).
    size_t hit = 0;
    int blocks = 0;
    for (size_t i = 0; i < workers.size(); ++i) {
      const int matched = index_.match(prompt, workers[i].id);
      if (matched > blocks || (matched == blocks && matched > 0 && workers[i].tokens < workers[hit].tokens))
        hit = i, blocks = matched;
    }
    if (blocks > 0 && workers[hit].tokens <= mean * (1 + tolerance_))
      return {hit, fmt::format("longest prefix: {} of {} blocks", blocks, prompt.size()), blocks};
    PolicyChoice choice = fallback_.choose(workers, prompt);
    choice.cached_blocks = index_.match(prompt, workers[choice.index].id);
    if (blocks > 0)
      choice.why += fmt::format("; a prefix of {} blocks passed over, its worker has {:.0f} tokens, the mean is {:.0f}",
                                blocks, workers[hit].tokens, mean);
    else
      choice.why += "; no prefix known";
    return choice;
  }
  int cached_blocks(int worker, const Prompt& prompt) const override { return index_.match(prompt, worker); }
  void on_routed(int worker, const Prompt& prompt) override { index_.insert(prompt, worker); }
  void on_worker_removed(int worker) override { index_.remove_worker(worker); }
  size_t state_bytes() const override { return index_.approximate_bytes(); }

 private:
  double tolerance_;
  PrefixIndex index_;
  LeastToken fallback_;
};

struct Entry {
  std::string_view name, alias;
  std::unique_ptr<Policy> (*make)(const PolicyOptions&);
};

template <class P>
std::unique_ptr<Policy> plain(const PolicyOptions&) {
  return std::make_unique<P>();
}
template <class P>
std::unique_ptr<Policy> seeded(const PolicyOptions& options) {
  return std::make_unique<P>(options.seed);
}

constexpr Entry kPolicies[] = {
    {"prefix-cache", "cache-aware",
     [](const PolicyOptions& options) -> std::unique_ptr<Policy> { return std::make_unique<PrefixCache>(options); }},
    {"least-token", "", plain<LeastToken>},
    {"least-request", "", plain<LeastRequest>},
    {"round-robin", "", plain<RoundRobin>},
    {"power-of-two", "", seeded<PowerOfTwo>},
    {"random", "", seeded<Random>},
};

}  // namespace

std::vector<std::string_view> policy_names() {
  std::vector<std::string_view> names;
  for (const Entry& entry : kPolicies) names.push_back(entry.name);
  return names;
}

std::unique_ptr<Policy> make_policy(std::string_view name, const PolicyOptions& options) {
  std::string wanted(name);
  std::replace(wanted.begin(), wanted.end(), '_', '-');
  for (const Entry& entry : kPolicies)
    if (wanted == entry.name || (!entry.alias.empty() && wanted == entry.alias)) return entry.make(options);
  throw Error(Code::kInvalidArgument,
              fmt::format("there is no policy `{}`; there are {}", name, fmt::join(policy_names(), ", ")));
}

}  // namespace moectl::router
