#include "core/serving/answer.h"

#include <algorithm>
#include <random>
#include <span>
#include <utility>

#include "core/base/error.h"

namespace moectl {
namespace {

constexpr size_t kMaxOpenTokens = 16;  // of a marker that is ordinary text

// The chat template (DeepSeek-R1's, for one) may have written the opening marker itself.
bool prompt_opens_reasoning(const ModelText& text, const EncodedPrompt& prompt) {
  if (!text.reasoning || text.reasoning->is_harmony()) return false;
  if (!text.reasoning_tokens.known()) {
    const size_t count = std::min(prompt.ids.size(), kMaxOpenTokens);
    const std::string end = text.tokenizer->decode(std::span(prompt.ids).last(count), false);
    return std::string_view(end).substr(0, end.find_last_not_of(" \n") + 1).ends_with(text.reasoning->open);
  }
  const auto last_of = [&](int32_t id) { return std::find(prompt.ids.rbegin(), prompt.ids.rend(), id); };
  const auto open = last_of(text.reasoning_tokens.open);
  // At most a line break (one token) may stand behind it.
  return open != prompt.ids.rend() && open - prompt.ids.rbegin() <= 1 && last_of(text.reasoning_tokens.close) > open;
}

api::OutputParser::Options parser_options(const ModelText& text, const EncodedPrompt& prompt,
                                          const AnswerOptions& options) {
  if (!options.chat || !text.tokenizer) return {};
  return {.reasoning = text.reasoning,
          .tools = options.tools.parses_calls() ? text.tool_calls : nullptr,
          .tool_schemas = options.tools.tools,
          .reasoning_opened = prompt_opens_reasoning(text, prompt),
          .one_call = !options.tools.parallel};
}

std::string call_id(api::CallId form) {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  if (form != api::CallId::kShort) return fmt::format("call_{:016x}{:08x}", generator(), uint32_t(generator()));
  constexpr std::string_view kLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::string id(9, ' ');
  for (char& c : id) c = kLetters[generator() % kLetters.size()];
  return id;
}

const char* reason_name(FinishReason finish) {
  return finish == FinishReason::kLength ? "length" : "stop";
}

}  // namespace

Answer::Answer(const ModelText& text, const api::Common& common, const EncodedPrompt& prompt, AnswerOptions options,
               int index, std::shared_ptr<api::PromptScores> scores)
    : text_(text),
      common_(common),
      prompt_(prompt),
      options_(options),
      index_(index),
      scores_(std::move(scores)),
      parser_(parser_options(text, prompt, options)),
      in_reasoning_(parser_.in_reasoning()) {
  if (text.tokenizer) {
    // A completion continues its prompt: "Paris" after "The capital of France is" keeps its space.
    detokenizer_.emplace(text.tokenizer, Detokenizer::Options{.stop = common.sampling.stop,
                                                              .include_stop = common.include_stop,
                                                              .skip_special = common.skip_special,
                                                              .continues_text = !options.chat});
  }
}

api::Choice Answer::push(GenerateOutput&& output) {
  api::Choice delta{.index = index_};
  if (!std::exchange(started_, true)) start(output, delta);
  for (size_t i = 0; i < output.tokens.size() && !options_.score_only && !done_; ++i) {
    const bool last = i + 1 == output.tokens.size();
    add_token(output.tokens[i], last && output.finish == FinishReason::kStop, delta);
    if (detokenizer_ && detokenizer_->stopped()) {
      delta.stop_string = detokenizer_->stop_string();
      close({.finish = FinishReason::kStop}, delta);
    }
  }
  if (output.finish != FinishReason::kNone && !done_) close(output, delta);
  return delta;
}

void Answer::start(const GenerateOutput& first, api::Choice& delta) {
  num_cached_tokens_ = first.num_cached_tokens;
  const api::Sampling& sampling = common_.sampling;
  if (common_.return_token_ids || !detokenizer_) delta.prompt_token_ids = prompt_.ids;
  if (options_.wants_prompt_scores(sampling)) {
    if (scores_->empty() && first.prompt_tokens.size() + 1 == prompt_.ids.size()) score_prompt(first);
    delta.prompt_scores = scores_;
    delta.prompt_top = sampling.num_prompt_logprobs;
    if (options_.echo) delta.echoed_top = sampling.num_logprobs;
  }
  if (!options_.echo) return;
  if (prompt_.text)
    delta.content = *prompt_.text;
  else if (text_.tokenizer)
    delta.content = text_.tokenizer->decode(prompt_.ids, common_.skip_special);
  text_offset_ = api::count_characters(delta.content);
}

void Answer::add_token(const GenerateOutput::Token& token, bool ends_answer, api::Choice& delta) {
  ++num_tokens_;
  if (options_.chat) count_reasoning(token.id);
  if (common_.return_token_ids || !detokenizer_) delta.token_ids.push_back(token.id);
  if (common_.sampling.num_logprobs >= 0) {
    delta.logprobs.push_back(scored(token, common_.sampling.num_logprobs));
    delta.logprobs.back().text_offset = text_offset_;
  }
  if (!detokenizer_) return;
  const bool was_reasoning = parser_.in_reasoning();
  // The token that ended the answer (eos, stop_token_ids) gives no text unless it was asked for. Harmony's have none.
  const bool visible = !ends_answer || common_.include_stop;
  if (is_mark(token.id) && (visible || parser_.is_harmony())) {
    add_output(parser_.push(detokenizer_->finish()), delta);
    add_output(parser_.mark(text_.tokenizer->token_bytes(token.id)), delta);
  } else if (visible) {
    if (!(common_.skip_special && text_.tokenizer->is_special(token.id)))
      text_offset_ += api::count_characters(text_.tokenizer->token_bytes(token.id));
    add_output(parser_.push(detokenizer_->push(token.id)), delta);
  }
  if (!text_.reasoning_tokens.known() && was_reasoning && parser_.in_reasoning()) ++num_reasoning_tokens_;
}

// A marker whose text the parser needs and the detokenizer would leave out.
bool Answer::is_mark(int32_t id) const {
  if (!options_.chat) return false;
  const auto one_of = [id](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  if (parser_.is_harmony()) return one_of(text_.harmony_markers);
  if (!common_.skip_special || !text_.tokenizer->is_special(id)) return false;
  return one_of(text_.reasoning_markers) || (options_.tools.parses_calls() && one_of(text_.tool_markers));
}

void Answer::add_output(api::OutputDelta&& parts, api::Choice& delta) {
  delta.reasoning += parts.reasoning;
  delta.content += parts.content;
  for (api::ToolCallDelta& call : parts.tool_calls) {
    has_calls_ = true;
    if (!call.name.empty() && call.id.empty()) call.id = call_id(text_.tool_calls->id);
    api::append_tool_call(delta.tool_calls, std::move(call));
  }
}

void Answer::close(const GenerateOutput& last, api::Choice& delta) {
  done_ = true;
  if (detokenizer_) add_output(parser_.push(detokenizer_->finish()), delta);
  add_output(parser_.finish(), delta);
  delta.finish_reason = has_calls_ && last.finish == FinishReason::kStop ? "tool_calls" : reason_name(last.finish);
  const auto& stops = common_.sampling.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), last.stop_token) != stops.end()) delta.stop_token = last.stop_token;
}

void Answer::count_reasoning(int32_t id) {
  if (!text_.reasoning_tokens.known()) return;
  const bool call = options_.tools.parses_calls() && id == text_.reasoning_tokens.ends_at;
  if (id == text_.reasoning_tokens.close || call) {
    in_reasoning_ = false;
    after_reasoning_ = true;
  } else if (id == text_.reasoning_tokens.open && num_tokens_ == 1 && !after_reasoning_) {
    in_reasoning_ = true;
  } else if (in_reasoning_) {
    ++num_reasoning_tokens_;
  }
}

api::ScoredToken Answer::scored(const GenerateOutput::Token& token, int num_top) const {
  api::ScoredToken entry{.id = token.id, .bytes = text_.token_bytes(token.id), .logprob = token.logprob};
  const size_t count = std::min(token.top.size(), size_t(num_top));
  for (size_t i = 0; i < count; ++i)
    entry.top.push_back({token.top[i].token_id, text_.token_bytes(token.top[i].token_id), token.top[i].logprob});
  return entry;
}

// With the alternatives of the one of both lists that has more.
void Answer::score_prompt(const GenerateOutput& first) {
  const int num_top = std::max(common_.sampling.num_prompt_logprobs, options_.echo ? common_.sampling.num_logprobs : 0);
  int64_t text_offset = 0;
  scores_->reserve(prompt_.ids.size());
  for (size_t i = 0; i < prompt_.ids.size(); ++i) {
    const int32_t id = prompt_.ids[i];
    api::ScoredToken entry =
        i > 0 ? scored(first.prompt_tokens[i - 1], num_top) : api::ScoredToken{.has_logprob = false};
    entry.id = id;
    entry.bytes = text_.token_bytes(id);
    entry.text_offset = text_offset;
    // What is not in the echoed text takes no room in it: a BOS we added, special tokens of a prompt given as ids.
    const bool hidden = prompt_.text ? i < prompt_.num_added_before
                                     : common_.skip_special && text_.tokenizer && text_.tokenizer->is_special(id);
    if (!hidden) text_offset += api::count_characters(entry.bytes);
    scores_->push_back(std::move(entry));
  }
}

}  // namespace moectl
