// ChatTemplate: a small Jinja interpreter for the chat templates that checkpoints carry. Compiled once, rendered from
// any thread. A template is input from outside: depth, steps and output are bounded, and every output byte remembers
// whether it came from the template or from the request.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/text/tokenizer.h"

namespace moectl {

struct ChatTemplateLimits {
  int max_depth = 64;             // nesting of expressions, blocks and values
  int64_t max_steps = 2'000'000;  // evaluated nodes and loop iterations
  int64_t max_output_bytes = 16 << 20;
};

class ChatTemplate {
 public:
  // Compiles as transformers does (trim_blocks, lstrip_blocks, loop controls). Throws Error{kBadData} with line and
  // reason.
  static std::shared_ptr<const ChatTemplate> compile(std::string source, ChatTemplateLimits limits = {});
  virtual ~ChatTemplate() = default;

  // `variables` is an object: messages, tools, add_generation_prompt, bos_token, eos_token and the caller's
  // chat_template_kwargs. Strings reached through the keys in `trusted_keys` (bos_token, eos_token ...) count as
  // template bytes; everything else that comes from `variables` is untrusted. Adjacent segments differ in `trusted`.
  // Throws Error{kInvalidArgument} for raise_exception, undefined operations and exceeded limits.
  virtual std::vector<TextSegment> render(const nlohmann::json& variables,
                                          const std::vector<std::string>& trusted_keys) const = 0;
  // The same from JSON that keeps the order of keys, as Python's dicts do: what `tojson` prints depends on it.
  virtual std::vector<TextSegment> render(const nlohmann::ordered_json& variables,
                                          const std::vector<std::string>& trusted_keys) const = 0;
};

}  // namespace moectl
