// The OpenAI API as plain data: what a request asks for, after every field was checked. Workers map it to engine
// requests, the router reads it to route; neither sees JSON, but for the schemas of tools. Reading is pure and may run
// on any thread. A field that we know is either honoured or refused with its name; fields nobody knows are skipped, as
// OpenAI-compatible servers do.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace moectl::api {

// What a server offers; bounds that requests are checked against. Zero: not known here (the router), not checked.
struct Limits {
  int32_t vocab_size = 0;
  int max_model_len = 0;
};

inline constexpr int kMaxChoices = 16;  // n
inline constexpr int kMaxPrompts = 64;  // prompts in one completion request
inline constexpr int kMaxTopLogprobs = 20;
inline constexpr int kMaxStops = 16;       // stop strings, and stop token ids
inline constexpr int kMaxStopBytes = 256;  // one stop string
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxMessages = 4096;
inline constexpr int kMaxTemplateKwargs = 32;

// How to continue a prompt. Unset: the server's default (generation_config.json, then OpenAI's).
struct Sampling {
  std::optional<double> temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
  std::optional<int> top_k;  // 0: off
  std::optional<uint64_t> seed;
  std::optional<int> max_tokens;
  int min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  int num_logprobs = -1;         // -1: none; 0: of the chosen token; k: also the k best
  int num_prompt_logprobs = -1;  // the same for prompt tokens
};

// What both kinds of request share.
struct Common {
  std::string model;  // empty: whatever is served
  Sampling sampling;
  int n = 1;
  bool stream = false, include_usage = false;
  bool include_stop = false;  // include_stop_str_in_output
  bool skip_special = true;   // skip_special_tokens
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // return_tokens_as_token_ids: "token_id:17" as token text
  std::string cache_salt;
};

// A call that an assistant message of the request holds.
struct PastToolCall {
  std::string id, name;
  std::string arguments;  // the JSON text of an object, not deeper or larger than it may be
};

struct ChatMessage {
  std::string role;  // system | user | assistant | tool (developer arrives as system)
  std::string content;
  std::optional<std::string> name, reasoning_content;
  std::vector<PastToolCall> tool_calls;     // assistant
  std::optional<std::string> tool_call_id;  // tool
};

enum class ToolChoice { kAuto, kNone };

struct ToolRequest {
  std::shared_ptr<const nlohmann::ordered_json> tools;  // as the request has them; null: none
  ToolChoice choice = ToolChoice::kAuto;
  bool parallel = true;

  bool parses_calls() const { return tools && choice != ToolChoice::kNone; }
};

using Scalar = std::variant<bool, int64_t, double, std::string>;

struct ChatRequest {
  Common common;
  std::vector<ChatMessage> messages;
  ToolRequest tools;
  bool add_generation_prompt = true;
  // Variables for the template, by name; never one the server sets itself. reasoning_effort is passed as one of them.
  std::vector<std::pair<std::string, Scalar>> template_kwargs;
};

using Prompt = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest {
  Common common;  // max_tokens may be 0 with echo: the prompt is scored only
  std::vector<Prompt> prompts;
  bool echo = false;
  bool add_special_tokens = true;  // BOS before a text prompt, when the checkpoint asks for it
};

struct TokenizeRequest {
  std::string model;
  std::variant<std::string, ChatRequest> input;  // a prompt, or messages as in a chat
  bool add_special_tokens = true;
  bool return_token_strs = false;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};

// Each throws Error{kInvalidArgument}, with param when one field is at fault.
ChatRequest read_chat_request(std::string_view body, const Limits& limits);
CompletionRequest read_completion_request(std::string_view body, const Limits& limits);
TokenizeRequest read_tokenize_request(std::string_view body, const Limits& limits);
DetokenizeRequest read_detokenize_request(std::string_view body, const Limits& limits);

}  // namespace moectl::api
