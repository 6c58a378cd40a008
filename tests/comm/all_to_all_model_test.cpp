// The protocol of the expert all-to-all, in every state that it can reach: what is read is what was stored for this
// all-to-all, nothing is stored over what is still needed, and every rank comes to its end. The receive buffers exist
// once; that dispatch and combine alternate is enough. And each wait and rule is needed: without it, the search finds
// what goes wrong.
#include "tests/comm/all_to_all_model.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace moectl::test {
namespace {

using Model = AllToAllModel;

std::string text_of(const Model::Result& result) {
  std::string text = result.violation + ":\n";
  for (const std::string& line : result.trace) text += "  " + line + "\n";
  return text;
}

void expect_holds(const Model& model) {
  const Model::Result result = model.search();
  EXPECT_TRUE(result.violation.empty()) << text_of(result);
  EXPECT_GT(result.num_states, 100);
}

void expect_violation(const Model& model, const std::string& violation) {
  const Model::Result result = model.search();
  EXPECT_NE(result.violation.find(violation), std::string::npos) << text_of(result);
}

// The model without faults, and with each of them.
std::vector<Model> with_faults(Model model) {
  std::vector<Model> models(4, model);
  models[1].abort = true;
  models[2].stop = true;
  models[3].timeouts = true;
  return models;
}

std::vector<Model> in_both_forms(Model model) {
  std::vector<Model> models(2, model);
  models[1].choices_have_a_signal = false;
  return models;
}

TEST(AllToAllModel, TwoRanksHold) {
  for (const auto visibility : {Model::kAnyTime, Model::kEarliest, Model::kLatest})
    for (const Model& form : in_both_forms({.num_ranks = 2, .num_all_to_alls = 4, .visibility = visibility}))
      for (const Model& model : with_faults(form)) expect_holds(model);
}

TEST(AllToAllModel, ThreeRanksHold) {
  for (const auto visibility : {Model::kEarliest, Model::kLatest})
    for (const Model& form : in_both_forms({.num_ranks = 3, .num_all_to_alls = 2, .visibility = visibility}))
      for (const Model& model : with_faults(form)) expect_holds(model);
  // Any order of the stores of three ranks: more than a million states without faults.
  expect_holds({.num_ranks = 3, .num_all_to_alls = 2, .choices_have_a_signal = false});
}

const Model kTwo = {.num_ranks = 2, .num_all_to_alls = 3};

Model omitting(Model::Kind wait, Model model = kTwo) {
  model.omitted_wait = wait;
  return model;
}

TEST(AllToAllModel, NeedsTheWaitForChoices) {
  expect_violation(omitting(Model::kChoices), "reads choices of all-to-all 0");
}

TEST(AllToAllModel, NeedsTheWaitForTokens) {
  expect_violation(omitting(Model::kTokens), "reads tokens of all-to-all 0");
  // Where choices have no signal, it stands for them, too.
  expect_violation(omitting(Model::kTokens, in_both_forms(kTwo)[1]), "reads tokens of all-to-all 0");
}

TEST(AllToAllModel, NeedsTheWaitForResults) {
  expect_violation(omitting(Model::kResults), "reads results of all-to-all 0");
}

TEST(AllToAllModel, NeedsACombineBetweenDispatches) {
  Model model = kTwo;
  model.omit_combine = true;
  expect_violation(model, "stores over choices of all-to-all 1 that rank 0 still needs");
}

TEST(AllToAllModel, NeedsSignalsThatAreReleased) {
  const std::string names[] = {"choices", "tokens", "results"};
  for (const auto kind : {Model::kChoices, Model::kTokens, Model::kResults}) {
    Model model = kTwo;
    model.unordered_signal = kind;
    expect_violation(model, "reads " + names[kind] + " of all-to-all 0");
  }
}

TEST(AllToAllModel, NeedsWaitsThatEndWithAnAbort) {
  Model model = kTwo;
  model.abort = model.ignore_abort = true;
  expect_violation(model, "waits forever");
}

// A rank whose wait failed must neither signal nor store: its peers may only be late, and still need what it stored.
TEST(AllToAllModel, NeedsRanksThatEndAfterAFailure) {
  for (const auto after : {Model::kStore, Model::kStoreAndSignal}) {
    Model model = kTwo;
    model.after_failure = after;
    model.timeouts = true;
    expect_violation(model, "that rank 1 still needs");
    model.timeouts = false;
    model.abort = true;
    expect_violation(model, "that rank 1 still needs");
  }
  Model model = {.num_ranks = 2, .num_all_to_alls = 1, .timeouts = true, .after_failure = Model::kStoreAndSignal};
  expect_violation(model, "reads results of all-to-all 0");  // computed without tokens
}

// What Model::Visibility says: the two extremes find what any order finds.
TEST(AllToAllModel, EarliestAndLatestStoresFindEveryDefect) {
  std::vector<Model> defects(7, kTwo);
  defects[0].omitted_wait = Model::kChoices;
  defects[1].omitted_wait = Model::kTokens;
  defects[2].omitted_wait = Model::kResults;
  defects[3].unordered_signal = Model::kTokens;
  defects[4].unordered_signal = Model::kResults;
  defects[5].omit_combine = true;
  defects[6].timeouts = true;
  defects[6].after_failure = Model::kStore;
  for (size_t i = 0; i < defects.size(); ++i) {
    int found = 0;
    for (const auto visibility : {Model::kEarliest, Model::kLatest}) {
      defects[i].visibility = visibility;
      found += !defects[i].search().violation.empty();
    }
    EXPECT_GE(found, 1) << "defect " << i;
  }
}

}  // namespace
}  // namespace moectl::test
