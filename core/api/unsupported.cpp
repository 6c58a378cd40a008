#include "core/api/unsupported.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/base/error.h"

namespace moectl::api {
namespace {

struct Unsupported {
  const char* name;
  const char* reason;
  const char* neutral = "[]";  // JSON list of the values that ask for nothing; null always does
  bool in_chats = true;        // false: chats know it
};

constexpr const char* kTools = "tools belong to chats (/v1/chat/completions)";
constexpr const char* kOldTools = "it was replaced by `tools` and `tool_choice`";
constexpr const char* kStructured = "structured output is not supported by this server";
constexpr const char* kMedia = "this model reads and writes text only";
constexpr const char* kNoSuch = "it is not supported by this server";
constexpr const char* kPeer = "peers are chosen by the cluster, never by a client";

constexpr Unsupported kUnsupported[] = {
    {"tools", kTools, "[[]]", false},
    {"tool_choice", kTools, R"(["none", "auto"])", false},
    {"functions", kOldTools, "[[]]"},
    {"function_call", kOldTools, R"(["none", "auto"])"},
    {"response_format", kStructured, R"([{"type": "text"}])"},
    {"structured_outputs", kStructured},
    {"guided_json", kStructured},
    {"guided_regex", kStructured},
    {"guided_choice", kStructured},
    {"guided_grammar", kStructured},
    {"guided_decoding_backend", kStructured},
    {"regex", kStructured},
    {"ebnf", kStructured},
    {"json_schema", kStructured},
    {"audio", kMedia},
    {"modalities", kMedia, R"([["text"]])"},
    {"mm_processor_kwargs", kMedia},
    {"prompt_embeds", kMedia},
    {"suffix", kNoSuch},
    {"prediction", kNoSuch},
    {"web_search_options", kNoSuch},
    {"verbosity", kNoSuch, R"(["medium"])"},
    {"store", "answers are not stored", "[false]"},
    {"service_tier", "there is one tier", R"(["auto", "default"])"},
    {"priority", kNoSuch, "[0]"},
    {"use_beam_search", kNoSuch, "[false]"},
    {"length_penalty", kNoSuch, "[1.0]"},
    {"bad_words", kNoSuch, "[[]]"},
    {"allowed_token_ids", kNoSuch},
    {"logits_processors", kNoSuch, "[[]]"},
    {"truncate_prompt_tokens", kNoSuch},
    {"spaces_between_special_tokens", kNoSuch, "[true]"},
    {"documents", kNoSuch, "[[]]"},
    {"chat_template", "templates come from the checkpoint; use chat_template_kwargs for its variables"},
    {"lora_path", kNoSuch},
    {"session_params", kNoSuch},
    {"data_parallel_rank", kPeer},
    {"disagg_prefill_dp_rank", kPeer},
};

// Whatever other servers call the hand-over between prefill and decode.
constexpr std::array kPeerPrefixes = {"kv_transfer", "do_remote_", "remote_", "bootstrap_", "prefill_", "decode_"};

[[noreturn]] void refuse(const std::string& name, const char* reason) {
  throw Error(Code::kInvalidArgument, fmt::format("`{}` cannot be set: {}", name, reason), name);
}

}  // namespace

void refuse_unsupported(const Fields& fields, bool chat) {
  for (const Unsupported& entry : kUnsupported) {
    const nlohmann::json* value = fields.find(entry.name);
    if (!value || (chat && !entry.in_chats)) continue;
    const auto neutral = nlohmann::json::parse(entry.neutral);
    if (std::find(neutral.begin(), neutral.end(), *value) == neutral.end()) refuse(entry.name, entry.reason);
  }
  for (const auto& [name, value] : fields.object().items())
    for (const char* prefix : kPeerPrefixes)
      if (name.starts_with(prefix) && !value.is_null()) refuse(name.substr(0, 64), kPeer);
}

}  // namespace moectl::api
