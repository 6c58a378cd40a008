#include "core/text/chat_template.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/jinja/ast.h"
#include "core/jinja/interpreter.h"

namespace moectl {
namespace {

constexpr size_t kMaxSourceBytes = 1 << 20;  // known templates stay below 32 KiB

class JinjaTemplate : public ChatTemplate {
 public:
  JinjaTemplate(std::string source, ChatTemplateLimits limits)
      : limits_(limits), body_(jinja::parse(std::move(source), limits.max_depth)) {}

  std::vector<TextSegment> render(const nlohmann::json& variables,
                                  const std::vector<std::string>& trusted_keys) const override {
    return render_json(variables, trusted_keys);
  }
  std::vector<TextSegment> render(const nlohmann::ordered_json& variables,
                                  const std::vector<std::string>& trusted_keys) const override {
    return render_json(variables, trusted_keys);
  }

 private:
  template <class Json>
  std::vector<TextSegment> render_json(const Json& variables, const std::vector<std::string>& trusted_keys) const {
    CHECK(variables.is_object(), "a chat template's variables must be a JSON object");
    jinja::Dict dict;
    for (const auto& [key, value] : variables.items()) {
      bool trusted = std::find(trusted_keys.begin(), trusted_keys.end(), key) != trusted_keys.end();
      dict.entries.emplace_back(jinja::Value(jinja::Str(key, true)), convert(key, value, trusted));
    }
    return run(jinja::Value(std::make_shared<const jinja::Dict>(std::move(dict))));
  }

  template <class Json>
  jinja::Value convert(const std::string& key, const Json& value, bool trusted) const {
    try {
      return jinja::from_json(value, trusted, limits_.max_depth);
    } catch (const Error& e) {
      throw Error(e.code(), fmt::format("chat template, variable '{}': {}", key, e.what()), key);
    }
  }

  std::vector<TextSegment> run(const jinja::Value& variables) const {
    jinja::Context context(limits_.max_steps, static_cast<size_t>(limits_.max_output_bytes), limits_.max_depth);
    jinja::Interpreter interpreter(context, variables);
    jinja::Str text;
    try {
      text = interpreter.run(body_);
    } catch (const Error& e) {
      throw Error(e.code(), fmt::format("chat template, line {}: {}", interpreter.line(), e.what()));
    }
    std::vector<TextSegment> segments;
    size_t begin = 0;
    for (const auto& run : text.runs()) {
      segments.push_back({text.text().substr(begin, run.end - begin), run.trusted});
      begin = run.end;
    }
    return segments;
  }

  const ChatTemplateLimits limits_;
  const jinja::Body body_;
};

}  // namespace

std::shared_ptr<const ChatTemplate> ChatTemplate::compile(std::string source, ChatTemplateLimits limits) {
  if (source.size() > kMaxSourceBytes)
    throw Error(Code::kBadData,
                fmt::format("chat template: {} bytes long, at most {} are accepted", source.size(), kMaxSourceBytes));
  return std::make_shared<const JinjaTemplate>(std::move(source), limits);
}

}  // namespace moectl
