// From engine tokens to what the client sees, with the demo's tokenizer and recorded answers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/serving/answer.h"
#include "core/serving/sampling.h"

namespace moectl {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;

constexpr int32_t kEos = 1;

const ModelText& demo_text() {
  static const ModelText text =
      ModelText::load(std::filesystem::path(MOECTL_SOURCE_DIR) / "models/demo", false, "auto", "auto");
  return text;
}

std::vector<int32_t> ids_of(const std::string& text) {
  return demo_text().tokenizer->encode(text);
}

// Feeds `ids` in steps of `step` tokens, as an engine that ends with eos or by length would.
api::Choice run(Answer& answer, const std::vector<int32_t>& ids, size_t step = 1) {
  api::Choice whole;
  for (size_t at = 0; at < ids.size() && !answer.done(); at += step) {
    GenerateOutput output;
    for (size_t i = at; i < std::min(at + step, ids.size()); ++i)
      output.tokens.push_back({.id = ids[i], .logprob = -0.25f});
    if (at + step >= ids.size()) {
      output.finish = ids.back() == kEos ? FinishReason::kStop : FinishReason::kLength;
      if (ids.back() == kEos) output.stop_token = kEos;
    }
    whole.append(answer.push(std::move(output)));
  }
  return whole;
}

TEST(Answer, RecordedAnswersAreSplitIntoReasoningAndContent) {
  const Json golden = Json::parse(std::ifstream(std::string(MOECTL_SOURCE_DIR) + "/models/demo/golden.json"));
  const api::Common common;
  for (const Json& c : golden["cases"])
    for (size_t step : {1, 2, 7, 1000}) {
      const auto ids = c["output_ids"].get<std::vector<int32_t>>();
      const EncodedPrompt prompt{.ids = c["prompt_ids"]};
      Answer answer(demo_text(), common, prompt, {.chat = true}, 0);
      const api::Choice choice = run(answer, ids, step);
      const std::string text = c["output_text"];
      const size_t close = text.find("</think>");
      if (close == std::string::npos) {
        EXPECT_EQ(choice.content, text);
        EXPECT_EQ(choice.reasoning, "");
        EXPECT_EQ(answer.num_reasoning_tokens(), 0);
      } else {
        EXPECT_EQ("<think>\n" + choice.reasoning + "\n</think>\n\n" + choice.content, text);
        const auto at = std::find(ids.begin(), ids.end(), demo_text().reasoning_tokens.close) - ids.begin();
        EXPECT_EQ(answer.num_reasoning_tokens(), at - 1);
      }
      EXPECT_EQ(choice.finish_reason, ids.back() == kEos ? "stop" : "length");
      EXPECT_EQ(answer.num_tokens(), int64_t(ids.size()));
    }
}

TEST(Answer, StopStringEndsTextTokensAndUsage) {
  api::Common common;
  common.sampling.stop = {"write"};
  common.sampling.num_logprobs = 0;
  common.return_token_ids = true;
  const EncodedPrompt prompt{.ids = {0, 3}};
  const std::vector<int32_t> ids = ids_of("4 + 7 = 11, write 1, carry 1");
  for (size_t step : {1, 3, 100}) {
    Answer answer(demo_text(), common, prompt, {}, 0);
    const api::Choice choice = run(answer, ids, step);
    EXPECT_EQ(choice.content, "4 + 7 = 11, ");
    EXPECT_EQ(choice.finish_reason, "stop");
    EXPECT_EQ(choice.stop_string, "write");
    EXPECT_TRUE(answer.done());
    EXPECT_LT(choice.token_ids.size(), ids.size());
    EXPECT_EQ(int64_t(choice.token_ids.size()), answer.num_tokens());
    EXPECT_EQ(choice.logprobs.size(), choice.token_ids.size());
    const std::string shown = demo_text().tokenizer->decode(choice.token_ids, true);
    EXPECT_TRUE(shown.ends_with("write")) << shown;
  }
}

TEST(Answer, EosAndStopTokensGiveNoText) {
  api::Common common;
  common.skip_special = false;
  std::vector<int32_t> ids = ids_of("Hello!");
  ids.push_back(kEos);
  const EncodedPrompt prompt{.ids = {0}};
  Answer answer(demo_text(), common, prompt, {}, 0);
  EXPECT_EQ(run(answer, ids).content, "Hello!");

  common.sampling.stop_token_ids = {ids[1]};  // "!"
  Answer stopped(demo_text(), common, prompt, {}, 0);
  GenerateOutput output{
      .tokens = {{.id = ids[0]}, {.id = ids[1]}}, .finish = FinishReason::kStop, .stop_token = ids[1]};
  const api::Choice choice = stopped.push(std::move(output));
  EXPECT_EQ(choice.content, "Hello");
  EXPECT_EQ(choice.stop_token, ids[1]);
}

TEST(Answer, EchoWithLogprobsCoversThePrompt) {
  api::Common common;
  common.sampling.num_logprobs = 1;
  const std::string text = "naïve é";
  EncodedPrompt prompt{.ids = ids_of(text), .text = text, .num_added_before = 1};
  prompt.ids.insert(prompt.ids.begin(), 0);
  GenerateOutput output;
  for (size_t i = 1; i < prompt.ids.size(); ++i)
    output.prompt_tokens.push_back({.id = prompt.ids[i], .logprob = -float(i), .top = {{7, -0.5f}, {8, -0.75f}}});
  output.tokens = {{.id = ids_of("x")[0], .logprob = -9, .top = {{7, -1.0f}}}};
  output.finish = FinishReason::kLength;
  Answer answer(demo_text(), common, prompt, {.echo = true}, 0);
  const api::Choice choice = answer.push(std::move(output));
  EXPECT_EQ(choice.content, text + "x");
  ASSERT_TRUE(choice.prompt_scores);
  const api::PromptScores& scores = *choice.prompt_scores;
  ASSERT_EQ(scores.size(), prompt.ids.size());
  EXPECT_EQ(choice.echoed_top, 1);
  EXPECT_EQ(choice.prompt_top, -1);
  EXPECT_FALSE(scores[0].has_logprob);
  EXPECT_EQ(scores[0].text_offset, 0);
  EXPECT_EQ(scores[1].text_offset, 0);  // the BOS in front is not in the text
  EXPECT_EQ(scores[1].top.size(), 1u);
  ASSERT_EQ(choice.logprobs.size(), 1u);
  EXPECT_EQ(choice.logprobs.back().text_offset, api::count_characters(text));
  EXPECT_EQ(choice.logprobs.back().logprob, -9);
}

// Whichever comes first; the others need none of their own.
TEST(Answer, ChoicesOfAPromptShareItsScores) {
  api::Common common;
  common.sampling.num_logprobs = 1;
  common.sampling.num_prompt_logprobs = 2;
  const EncodedPrompt prompt{.ids = ids_of("Hello!")};
  const auto scores = std::make_shared<api::PromptScores>();
  Answer first(demo_text(), common, prompt, {.echo = true}, 0, scores);
  Answer second(demo_text(), common, prompt, {.echo = true}, 1, scores);
  GenerateOutput without{.tokens = {{.id = 9}}}, with{.tokens = {{.id = 9}}};
  for (size_t i = 1; i < prompt.ids.size(); ++i)
    with.prompt_tokens.push_back({.id = prompt.ids[i], .top = {{7, -0.5f}, {8, -0.75f}, {9, -1.0f}}});
  const api::Choice early = second.push(std::move(without));
  EXPECT_TRUE(early.prompt_scores && early.prompt_scores->empty());
  const api::Choice late = first.push(std::move(with));
  EXPECT_EQ(early.prompt_scores, late.prompt_scores);
  ASSERT_EQ(early.prompt_scores->size(), prompt.ids.size());
  EXPECT_EQ((*early.prompt_scores)[1].top.size(), 2u) << "of the list that has more";
  EXPECT_EQ(early.echoed_top, 1);
  EXPECT_EQ(early.prompt_top, 2);
}

TEST(Answer, ScoreOnlyShowsNoToken) {
  api::Common common;
  common.sampling.max_tokens = 0;
  const EncodedPrompt prompt{.ids = ids_of("Hi"), .text = "Hi"};
  Answer answer(demo_text(), common, prompt, {.echo = true, .score_only = true}, 0);
  GenerateOutput output{.tokens = {{.id = 9}}, .finish = FinishReason::kLength};
  const api::Choice choice = answer.push(std::move(output));
  EXPECT_EQ(choice.content, "Hi");
  EXPECT_EQ(choice.finish_reason, "length");
  EXPECT_EQ(answer.num_tokens(), 0);
}

TEST(Answer, WithoutTokenizerTokenIdsAreTheAnswer) {
  const ModelText none;
  const api::Common common;
  const EncodedPrompt prompt{.ids = {1, 2}};
  Answer answer(none, common, prompt, {}, 0);
  const api::Choice choice = run(answer, {5, 6, kEos});
  EXPECT_EQ(choice.content, "");
  EXPECT_THAT(choice.token_ids, ElementsAre(5, 6, kEos));
  EXPECT_THAT(choice.prompt_token_ids, ElementsAre(1, 2));
}

TEST(Answer, PromptThatOpensReasoningMakesTheAnswerStartInIt) {
  const api::Common common;
  const int32_t open = demo_text().reasoning_tokens.open, close = demo_text().reasoning_tokens.close;
  const struct {
    std::vector<int32_t> prompt;
    bool reasoning;
  } kCases[] = {{{0, 3, 4, open}, true},
                {{0, 3, 4, open, ids_of("\n")[0]}, true},
                {{0, 3, 4, open, close}, false},
                {{0, open, 3, 9, 4}, false}};
  for (const auto& c : kCases) {
    const EncodedPrompt prompt{.ids = c.prompt};
    Answer answer(demo_text(), common, prompt, {.chat = true}, 0);
    const api::Choice choice = run(answer, ids_of("because"));
    EXPECT_EQ(choice.reasoning, c.reasoning ? "because" : "");
    EXPECT_EQ(choice.content, c.reasoning ? "" : "because");
    EXPECT_EQ(answer.num_reasoning_tokens() > 0, c.reasoning);
  }
}

TEST(Sampling, RequestThenCheckpointThenOpenAiDefaults) {
  GenerationDefaults defaults;
  EXPECT_EQ(to_engine_sampling({}, defaults, 1, 0, 10, 100).temperature, 1.0f);
  defaults.temperature = 0.6f;
  defaults.top_k = 20;
  const SamplingParams p = to_engine_sampling({}, defaults, 1, 0, 10, 100);
  EXPECT_EQ(p.temperature, 0.6f);
  EXPECT_EQ(p.top_k, 20);
  EXPECT_EQ(p.max_tokens, 90);
  EXPECT_EQ(p.seed, 1u);
  api::Sampling asked;
  asked.temperature = 0;
  asked.top_k = 0;
  asked.max_tokens = 1000;
  asked.num_prompt_logprobs = 3;
  const SamplingParams q = to_engine_sampling(asked, defaults, 1, 2, 10, 100);
  EXPECT_EQ(q.temperature, 0.0f);
  EXPECT_EQ(q.top_k, 0);
  EXPECT_EQ(q.max_tokens, 90);
  EXPECT_EQ(q.num_logprobs, 3);
  EXPECT_TRUE(q.prompt_logprobs);
  EXPECT_NE(q.seed, 1u);
  EXPECT_EQ(q.seed, to_engine_sampling(asked, defaults, 1, 2, 50, 100).seed);
  EXPECT_NE(q.seed, to_engine_sampling(asked, defaults, 1, 1, 10, 100).seed);
}

}  // namespace
}  // namespace moectl
