// ChatTemplate against jinja2's output (chat_template_cases.json, written by make_chat_template_cases.py), the origin
// of every output byte, and templates that try to exhaust depth, steps or memory.
#include "core/text/chat_template.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/error.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

std::string read_file(const std::string& path) {
  std::ifstream in(std::string(MOECTL_SOURCE_DIR "/") + path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string plain(const std::vector<TextSegment>& segments) {
  std::string text;
  for (const TextSegment& s : segments) text += s.text;
  return text;
}

// The output with its untrusted runs in ⟨ ⟩.
std::string marked(const std::string& source, const Json& variables, const std::vector<std::string>& trusted = {}) {
  std::string text;
  for (const TextSegment& s : ChatTemplate::compile(source)->render(variables, trusted))
    text += s.trusted ? s.text : "⟨" + s.text + "⟩";
  return text;
}

std::string render(const std::string& source, const Json& variables = Json::object(), ChatTemplateLimits limits = {}) {
  return plain(ChatTemplate::compile(source, limits)->render(variables, {}));
}

// Compares one case with what jinja2 did: its output, or the stage at which it failed.
void expect_case(const std::string& source, const Json& variables, const Json& expected) {
  std::shared_ptr<const ChatTemplate> compiled;
  try {
    compiled = ChatTemplate::compile(source);
    std::string output = plain(compiled->render(variables, {}));
    ASSERT_TRUE(expected.contains("output")) << "jinja2 fails here; our output: " << output;
    EXPECT_EQ(output, expected["output"].get<std::string>());
  } catch (const Error& e) {
    EXPECT_FALSE(expected.contains("output")) << e.what() << "\njinja2's output: " << expected.value("output", "");
    EXPECT_EQ(e.code(), compiled ? Code::kInvalidArgument : Code::kBadData);
    EXPECT_NE(std::string(e.what()).find("chat template, line "), std::string::npos) << e.what();
    // What jinja2 finds out when it runs we may find when compiling; never the other way round.
    EXPECT_FALSE(expected.value("error", "") == "compile" && compiled) << e.what();
    std::string message = expected.value("message", "");
    EXPECT_NE(std::string(e.what()).find(message), std::string::npos) << e.what();
  }
}

TEST(ChatTemplate, SnippetsMatchJinja2) {
  Json cases = Json::parse(read_file("tests/text/chat_template_cases.json"));
  ASSERT_GT(cases["snippets"].size(), 650u);
  for (const Json& c : cases["snippets"]) {
    SCOPED_TRACE(c["source"].get<std::string>());
    expect_case(c["source"], cases["values"], c);
  }
}

std::string template_source(const std::string& name) {
  if (name != "demo") return read_file("tests/text/templates/" + name);
  return Json::parse(read_file("models/demo/tokenizer_config.json"))["chat_template"].get<std::string>();
}

TEST(ChatTemplate, TemplatesMatchJinja2) {
  Json cases = Json::parse(read_file("tests/text/chat_template_cases.json"));
  ASSERT_GT(cases["templates"].size(), 600u);
  for (const Json& c : cases["templates"]) {
    std::string name = c["template"], title = c["conversation"];
    SCOPED_TRACE(name + " / " + title);
    std::string source = template_source(name);
    Json variables = cases["defaults"];
    variables.update(cases["conversations"][title]);
    expect_case(source, variables, c);
  }
}

// Every string and key of `json` that could be told from the template's own text.
void collect_texts(const Json& json, std::vector<std::string>& texts) {
  if (json.is_string() && json.size() > 0) texts.push_back(json.get<std::string>());
  if (!json.is_structured()) return;
  for (const auto& [key, value] : json.items()) {
    if (json.is_object()) texts.push_back(key);
    collect_texts(value, texts);
  }
}

// In every template, with every conversation: what the template did not write itself never counts as its text.
TEST(ChatTemplate, NoTemplateTurnsTheRequestsTextIntoItsOwn) {
  Json cases = Json::parse(read_file("tests/text/chat_template_cases.json"));
  size_t num_checked = 0;
  for (const Json& c : cases["templates"]) {
    if (!c.contains("output")) continue;
    std::string source = template_source(c["template"]), trusted;
    Json variables = cases["defaults"];
    variables.update(cases["conversations"][c["conversation"].get<std::string>()]);
    for (const TextSegment& s : ChatTemplate::compile(source)->render(variables, {"bos_token", "eos_token"}))
      if (s.trusted) trusted += s.text + "\x01";
    variables.erase("bos_token");
    variables.erase("eos_token");
    std::vector<std::string> texts;
    collect_texts(variables, texts);
    for (const std::string& text : texts) {
      if (source.find(text) != std::string::npos) continue;  // the template may have written it
      EXPECT_EQ(trusted.find(text), std::string::npos) << c["template"] << " / " << c["conversation"] << ": " << text;
      ++num_checked;
    }
  }
  EXPECT_GT(num_checked, 5000u);
}

TEST(ChatTemplate, RendersBothKindsOfJson) {
  auto compiled = ChatTemplate::compile("{{ d | tojson }}");
  EXPECT_EQ(plain(compiled->render(nlohmann::json{{"d", {{"b", 1}, {"a", 2}}}}, {})), "{\"a\": 2, \"b\": 1}");
  EXPECT_EQ(plain(compiled->render(Json{{"d", {{"b", 1}, {"a", 2}}}}, {})), "{\"b\": 1, \"a\": 2}");
}

// ------------------------------------------------------------------------------------------------ origin of bytes
TEST(ChatTemplate, TemplateTextIsTrustedAndVariablesAreNot) {
  Json v{{"x", "<|im_end|>"}, {"bos", "<s>"}, {"n", 5}, {"list", {"<a>", "<b>"}}};
  EXPECT_EQ(marked("<|u|>{{ x }}<|e|>", v), "<|u|>⟨<|im_end|>⟩<|e|>");
  EXPECT_EQ(marked("{{ bos }}{{ x }}", v, {"bos"}), "<s>⟨<|im_end|>⟩");
  EXPECT_EQ(marked("{{ bos }}", v), "⟨<s>⟩");
  EXPECT_EQ(marked("{{ '<u>' + x + '<e>' }}{{ '<f>' ~ x ~ n }}", v), "<u>⟨<|im_end|>⟩<e><f>⟨<|im_end|>5⟩");
  EXPECT_EQ(marked("{{ list[0] }}{{ list | join('<s>') }}", v, {"list"}), "<a><a><s><b>");
  EXPECT_EQ(marked("{% set y %}<t>{{ x }}{% endset %}{{ y }}", v), "<t>⟨<|im_end|>⟩");
  EXPECT_EQ(marked("{% macro m(a) %}<m>{{ a }}{% endmacro %}{{ m(x) }}", v), "<m>⟨<|im_end|>⟩");
  EXPECT_EQ(marked("{% set ns = namespace(a='<n>') %}{% set ns.a = ns.a + x %}{{ ns.a }}", v), "<n>⟨<|im_end|>⟩");
}

TEST(ChatTemplate, OperationsKeepTheOriginOfEveryByte) {
  Json v{{"x", " <|e|> "}, {"csv", "a<sep>b<sep>c"}, {"d", {{"<k>", "<v>"}}}};
  EXPECT_EQ(marked("{{ ('<t>' + x + '<t>')[2:8] }}", v), ">⟨ <|e|⟩");
  EXPECT_EQ(marked("{{ ('ab' + x)[::-1] }}", v), "⟨ >|e|< ⟩ba");
  EXPECT_EQ(marked("{{ x | trim }}{{ x.strip() }}", v), "⟨<|e|><|e|>⟩");
  EXPECT_EQ(marked("{{ csv.split('<sep>')[-1] }}|{{ csv.split('<sep>') | join('<sep>') }}", v),
            "⟨c⟩|⟨a⟩<sep>⟨b⟩<sep>⟨c⟩");
  EXPECT_EQ(marked("{{ csv.replace('<sep>', '<T>') }}", v), "⟨a⟩<T>⟨b⟩<T>⟨c⟩");
  EXPECT_EQ(marked("{{ '<T>'.replace('T', x) }}", v), "<⟨ <|e|> ⟩>");
  EXPECT_EQ(marked("{{ ('<t>' + x) | upper }}{{ ('<T>' + x).lower() }}", v), "<T>⟨ <|E|> ⟩<t>⟨ <|e|> ⟩");
  EXPECT_EQ(marked("{{ d | tojson }}", v), "⟨{\"<k>\": \"<v>\"}⟩");
  EXPECT_EQ(marked("{{ ['<t>', x] | tojson }}", v), "⟨[\"⟩<t>⟨\", \" <|e|> \"]⟩");
  EXPECT_EQ(marked("{{ '%s<t>%s' % ('<u>', x) }}", v), "<u><t>⟨ <|e|> ⟩");
  EXPECT_EQ(marked("{{ 'a\nb' | indent('<i>') }}{{ x * 2 }}", v), "a⟨\n⟩<i>b⟨ <|e|>  <|e|> ⟩");
  EXPECT_EQ(marked("{% for c in x %}{{ c }}{% endfor %}{{ x[1] }}{{ x | first }}", v), "⟨ <|e|> < ⟩");
  EXPECT_EQ(marked("{% for k, w in d.items() %}{{ k }}{{ w }}{% endfor %}", v), "⟨<k><v>⟩");
  EXPECT_EQ(marked("{{ [x, '<t>'] }}", v), "⟨[' <|e|> ', '⟩<t>⟨']⟩");
}

// A byte of the request stays one, whatever calls it passes through; the template's own bytes stay the template's.
TEST(ChatTemplate, CallsKeepTheOriginOfEveryByte) {
  Json v{{"x", "<|e|>"}, {"d", {{"<k>", "<v>"}}}, {"words", {"<b>", "<a>"}}, {"n", 3}};
  EXPECT_EQ(marked("{% macro m(a) %}<m>{{ caller(a) }}</m>{% endmacro %}{% call(y) m(x) %}<c>{{ y }}{% endcall %}", v),
            "<m><c>⟨<|e|>⟩</m>");
  EXPECT_EQ(marked("{% macro m() %}{{ varargs|join('<s>') }}{{ kwargs.k }}{% endmacro %}{{ m(x, '<t>', k=x) }}", v),
            "⟨<|e|>⟩<s><t>⟨<|e|>⟩");
  EXPECT_EQ(marked("{% macro m() %}{{ kwargs|join }}{% endmacro %}{{ m(**d) }}{{ dict(**d)|join }}", v), "⟨<k><k>⟩");
  EXPECT_EQ(marked("{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*words) }}{{ m(*['<t>', x]) }}", v),
            "⟨<b><a>⟩<t>⟨<|e|>⟩");
  EXPECT_EQ(marked("{% for w in [words, '<t>'] recursive %}{% if w is string %}{{ w }}<i>{% else %}{{ loop(w) }}"
                   "{% endif %}{% endfor %}",
                   v),
            "⟨<b>⟩<i>⟨<a>⟩<i><t><i>");
  EXPECT_EQ(marked("{% set y %}<y>{{ x }}{% endset %}{% set z %}{{ y }}{{ y|upper }}{% endset %}{{ z }}", v),
            "<y>⟨<|e|>⟩<Y>⟨<|E|>⟩");
  EXPECT_EQ(marked("{% filter replace('T', x) %}<T>{{ x }}{% endfilter %}", v), "<⟨<|e|>⟩>⟨<|e|>⟩");
  EXPECT_EQ(marked("{{ '<f>{}{}'.format(x, '<t>') }}{{ x.format('<t>') }}", v), "<f>⟨<|e|>⟩<t>⟨<|e|>⟩");
  EXPECT_EQ(marked("{{ '<{:*>7}>'.format(x) }}{{ '<{:<2}>'.format('t') }}{{ '<%03d>' % n }}", v),
            "<**⟨<|e|>⟩><t⟨ ⟩><⟨003⟩>");
  EXPECT_EQ(marked("{{ '<%(a)s>' % {'a': x} }}{{ '%r' % x }}", v), "<⟨<|e|>⟩>⟨'<|e|>'⟩");
  EXPECT_EQ(marked("{{ words|map('replace', '<', '[t]')|join('<s>') }}", v), "[t]⟨b>⟩<s>[t]⟨a>⟩");
  EXPECT_EQ(
      marked("{{ words|sort|join }}{{ words|batch(1)|map('first')|join }}{{ words|groupby(0)|map('first')|join }}", v),
      "⟨<a><b><b><a><⟩");
  EXPECT_EQ(marked("{{ '<t>'|safe + x }}{{ x|e }}{{ x|safe + '<t>' }}", v),
            "<t>⟨&lt;|e|&gt;&lt;|e|&gt;<|e|>⟩&lt;t&gt;");
  EXPECT_EQ(marked("{{ (x ~ '<t>')|truncate(6, true, '<u>', 0) }}", v), "⟨<|e⟩<u>");
  EXPECT_EQ(marked("{{ [x, {'<k>': x}]|tojson(indent=2, separators=('<,>', '<:>')) }}", v),
            "⟨[\n  \"<|e|>\"⟩<,>⟨\n  {\n    \"⟩<k>⟨\"⟩<:>⟨\"<|e|>\"\n  }\n]⟩");
  EXPECT_EQ(marked("{% generation %}<g>{{ x }}{% endgeneration %}{% with y = x ~ '<w>' %}{{ y }}{% endwith %}", v),
            "<g>⟨<|e|><|e|>⟩<w>");
}

// What chat_template_kwargs and tools bring is the request's, whatever its name and shape.
TEST(ChatTemplate, ExtraVariablesAreUntrusted) {
  Json v{{"bos_token", "<s>"},
         {"messages", {{{"role", "<r>"}, {"content", {{{"type", "text"}, {"text", "<|im_end|>"}}}}}}},
         {"tools", {{{"type", "function"}, {"function", {{"name", "<n>"}, {"parameters", {{"<p>", 1}}}}}}}},
         {"documents", {{{"title", "<d>"}}}},
         {"reasoning_effort", "<e>"},
         {"options", {{"deep", {"<o>"}}}}};
  EXPECT_EQ(marked("{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}{% endfor %}", v,
                   {"bos_token"}),
            "<s><⟨<r>⟩>⟨<|im_end|>⟩");
  EXPECT_EQ(marked("<t>{{ tools[0].function.name }}{% for k, w in tools[0].function.parameters|items %}{{ k }}"
                   "{% endfor %}{{ documents[0].title }}<t>{{ reasoning_effort }}{{ options.deep[0] }}",
                   v, {"bos_token"}),
            "<t>⟨<n><p><d>⟩<t>⟨<e><o>⟩");
}

// Numbers print as untrusted text, wherever they came from: no control token needs them.
TEST(ChatTemplate, NumbersAreUntrusted) {
  EXPECT_EQ(marked("{% for x in [1] %}<{{ loop.index }}>{% endfor %}{{ 1 + 1 }}{{ true }}{{ none }}", Json::object()),
            "<⟨1⟩>⟨2TrueNone⟩");
  EXPECT_EQ(marked("{{ strftime_now('%%') }}", Json::object()), "⟨%⟩");
}

// ------------------------------------------------------------------------------------------------ hostile templates
std::string repeat(const std::string& s, size_t n) {
  std::string out;
  for (size_t i = 0; i < n; ++i) out += s;
  return out;
}

void expect_error(Code code, const std::string& reason, const std::string& source,
                  const Json& variables = Json::object()) {
  SCOPED_TRACE(source.substr(0, 200));
  try {
    std::string output = render(source, variables);
    ADD_FAILURE() << "rendered " << output.size() << " bytes: " << output.substr(0, 200);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_NE(std::string(e.what()).find(reason), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("chat template"), std::string::npos) << e.what();
    EXPECT_LT(std::string(e.what()).size(), 400u);
  }
}

// Runs `work` on a thread with a small stack: an overflow would end the process. Sanitizers make frames ten times
// larger.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kSmallStack = 4 << 20;
#else
constexpr size_t kSmallStack = 256 << 10;
#endif
void on_small_stack(const std::function<void()>& work) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kSmallStack), 0);
  pthread_t thread;
  auto run = [](void* f) -> void* { return (*static_cast<const std::function<void()>*>(f))(), nullptr; };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, const_cast<std::function<void()>*>(&work)), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

TEST(ChatTemplateLimits, DeepTemplatesAreRefusedWithTheLine) {
  on_small_stack([] {
    for (size_t n : {130, 6000, 40'000}) {
      expect_error(Code::kBadData, "line 2: an expression nests deeper",
                   "\n{{ " + repeat("(", n) + "1" + repeat(")", n) + " }}");
      expect_error(Code::kBadData, "nests deeper", "{{ " + repeat("[", n) + repeat("]", n) + " }}");
      expect_error(Code::kBadData, "nests deeper", "{{ " + repeat("{1:", n) + "1" + repeat("}", n) + " }}");
      expect_error(Code::kBadData, "nests deeper", "{{ " + repeat("not ", n) + "1 }}");
      expect_error(Code::kBadData, "nests deeper", "{{ " + repeat("- ", n) + "1 }}");
      expect_error(Code::kBadData, "nests deeper", "{{ x" + repeat(".a", n) + " }}");
      expect_error(Code::kBadData, "nests deeper", "{{ x" + repeat("|e", n) + " }}");
      expect_error(Code::kBadData, "nests deeper", "{{ x" + repeat("[0]", n) + " }}");
      expect_error(Code::kBadData, "nests deeper", "{{ x" + repeat(" is defined", 1) + repeat("()", n) + " }}");
      expect_error(Code::kBadData, "nests deeper", "{{ " + repeat("1 if 1 else ", n) + "1 }}");
      expect_error(Code::kBadData, "nests deeper", "{{ " + repeat("f(", n) + repeat(")", n) + " }}");
      expect_error(Code::kBadData, "nest deeper", repeat("{% if 1 %}", n) + repeat("{% endif %}", n));
      expect_error(Code::kBadData, "nest deeper", repeat("{% for x in y %}", n));
      expect_error(Code::kBadData, "nest deeper", repeat("{% set x %}", n));
    }
  });
}

TEST(ChatTemplateLimits, LongChainsAreNotDeep) {
  on_small_stack([] {
    EXPECT_EQ(render("{{ 1" + repeat(" + 1", 6000) + " }}"), "6001");
    EXPECT_EQ(render("{{ 'a'" + repeat(" ~ 'a'", 6000) + " }}").size(), 6001u);
    EXPECT_EQ(render("{{ 1" + repeat(" and 1", 6000) + " }}"), "1");
    EXPECT_EQ(render("{% if 0 %}" + repeat("{% elif 0 %}", 6000) + "{% else %}x{% endif %}"), "x");
  });
}

TEST(ChatTemplateLimits, TheDeepestAllowedTemplateFitsASmallStack) {
  on_small_stack([] {
    EXPECT_EQ(render("{{ " + repeat("(", 60) + "1" + repeat(")", 60) + " }}"), "1");
    EXPECT_EQ(render("{{ " + repeat("[", 63) + "1" + repeat("]", 63) + " }}").size(), 127u);
    std::string blocks = repeat("{% if 1 %}{% for i in [1] %}{% set x %}", 20);
    std::string ends = repeat("{% endset %}{{ x }}{% endfor %}{% endif %}", 20);
    EXPECT_EQ(render(blocks + "{{ " + repeat("[", 60) + "1" + repeat("]", 60) + " }}" + ends).size(), 121u);
    // Macro calls through deep expressions, as far as the limit lets them.
    std::string body =
        "{% for i in [1] %}{% if 1 %}{{ '' ~ (1 if 0 else [m(n - 1)][0] | trim) }}{% endif %}{% endfor %}";
    expect_error(Code::kInvalidArgument, "nest too deeply", "{% macro m(n) %}" + body + "{% endmacro %}{{ m(1000) }}");
    std::string sum = repeat("1 + 0 * (", 20) + "m(n - 1) | length" + repeat(")", 20);
    expect_error(Code::kInvalidArgument, "nest too deeply",
                 "{% macro m(n) %}{{ " + sum + " }}{% endmacro %}{{ m(1000) }}");
    std::string blocks_in =
        repeat("{% with %}{% filter trim %}", 20) + "{{ m() }}" + repeat("{% endfilter %}{% endwith %}", 20);
    expect_error(Code::kInvalidArgument, "nest too deeply", "{% macro m() %}" + blocks_in + "{% endmacro %}{{ m() }}");
  });
}

TEST(ChatTemplateLimits, EndlessAndExponentialTemplatesEnd) {
  on_small_stack([] {
    auto refused = [](const std::string& reason, const std::string& source, const Json& variables = Json::object()) {
      expect_error(Code::kInvalidArgument, reason, source, variables);
    };
    refused("range is too big", "{% for i in range(10**9) %}{% endfor %}");
    refused("range is too big", "{{ range(-9223372036854775807, 9223372036854775807) | length }}");
    std::string loops = repeat("{% for i in range(100000) %}", 4) + "x" + repeat("{% endfor %}", 4);
    refused("too many steps", loops);
    refused("line 3: macros and blocks nest too deeply",
            "{% macro a() %}\n\n{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}");
    refused("nest too deeply", "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}");
    refused("nest too deeply", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}");
    refused("too many steps",
            "{% for x in [1, 2] recursive %}{{ loop.depth if loop.depth > 24 else loop([1, 2]) }}"
            "{% endfor %}");
    refused("too many steps",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(25) }}");
    refused("over the limit",
            "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% "
            "endfor %}");
    refused("over the limit",
            "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}");
    refused("too many steps",
            "{% set ns = namespace(l=[1, 2]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}");
    refused("nests deeper",
            "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}");
    // Shared parts: small in memory, 2^60 items when printed, compared or written as JSON.
    std::string shared =
        "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}";
    refused("too many steps", shared + "{{ ns.l }}");
    refused("too many steps", shared + "{{ ns.l | tojson }}");
    refused("too many steps", shared +
                                  "{% set a = ns.l %}{% set ns.l = [] %}{% for i in range(60) %}{% set ns.l = [ns.l, "
                                  "ns.l] %}{% endfor %}{{ a == ns.l }}");
    refused("over the limit", "{{ 'x' * 10000000000 }}");
    refused("over the limit", "{{ 'xx' * 9223372036854775807 }}");
    refused("too many steps", "{{ [1] * 10000000000 }}");
    refused("overflow", "{{ [1, 2] * 9223372036854775807 }}");
    refused("over the limit", "{{ 'a\nb' | indent(10**10) }}");
    refused("over the limit", "{{ 'a'.center(10**10) }}");
    refused("over the limit", "{{ 'a' | center(10**10) }}");
    refused("over the limit", "{{ 'a'.ljust(10**10) }}{{ 'a'.zfill(10**10) }}");
    refused("over the limit", "{{ [1] | tojson(indent=10**10) }}");
    refused("over the limit", "{{ [[[1]]] | tojson(indent=10000000) }}");
    refused("over the limit", "{{ x.replace('', x) }}", Json{{"x", repeat("y", 10000)}});
    refused("over the limit", "{{ x | join(x) }}", Json{{"x", repeat("y", 10000)}});
    refused("overflow", "{{ 9223372036854775807 + 1 }}");
    refused("overflow", "{{ -9223372036854775807 - 2 }}");
    refused("overflow", "{{ 3 ** 10000000000 }}");
    refused("overflow", "{{ 4611686018427387904 * 2 }}");
    refused("overflow", "{{ -(0 - 9223372036854775807 - 1) }}");
    refused("does not fit", "{{ '99999999999999999999' | int }}");
    refused("does not fit", "{{ 1e300 | int }}");
    // A filter's name as an argument of a filter, and so on.
    refused("call each other too deeply", "{{ 'a' | map(" + repeat("'map', ", 900) + "'upper') | list }}");
    refused("call each other too deeply", "{{ 'a' | map(" + repeat("'map', ", 64) + "'upper') | list }}");
    expect_error(Code::kBadData, "more than 1000 arguments", "{{ f(" + repeat("1, ", 1001) + "1) }}");
    refused("too many steps",
            "{% macro m() %}{{ varargs|length }}{% endmacro %}{% for i in range(100) %}"
            "{{ m(*range(100000)) }}{% endfor %}");
    refused("over the limit", "{{ x | batch(1) | map('join') | join(x) }}", Json{{"x", repeat("y", 10000)}});
    refused("too many steps", "{{ [1] | batch(10**10, 'x') | list }}");
    refused("too many steps", "{{ [1] | slice(10**10) | list }}");
    refused("too many steps", "{% macro m() %}{{ ('%99999s' * 200) % varargs }}{% endmacro %}{{ m(*range(200)) }}");
    refused("too many steps", "{{ ('{0:99999}' * 200).format(1) }}");
  });
}

TEST(ChatTemplateLimits, NamespacesMayHoldThemselves) {
  EXPECT_EQ(render("{% set a = namespace() %}{% set a.a = a %}{% set a.l = [a] %}{{ a.a.l[0].a is defined }}"), "True");
  expect_error(Code::kInvalidArgument, "cannot be printed", "{% set a = namespace() %}{% set a.a = a %}{{ a }}");
}

TEST(ChatTemplateLimits, DeepVariablesAreRefused) {
  on_small_stack([] {
    Json deep = 1;
    for (int i = 0; i < 63; ++i) deep = Json::array({deep});
    EXPECT_EQ(render("{{ x | tojson }}", Json{{"x", deep}}).size(), 127u);
    EXPECT_EQ(render("{{ x }}{{ x == x }}", Json{{"x", deep}}).size(), 131u);
    for (int i = 0; i < 200; ++i) deep = Json{{"a", deep}};
    expect_error(Code::kInvalidArgument, "variable 'x'", "{{ 1 }}", Json{{"x", deep}});
  });
  expect_error(Code::kInvalidArgument, "variable 'x'", "", Json{{"x", 18446744073709551615u}});
}

TEST(ChatTemplateLimits, OutputIsBounded) {
  ChatTemplateLimits limits;
  limits.max_output_bytes = 100;
  EXPECT_EQ(render(repeat("x", 100), {{"a", 1}}, limits).size(), 100u);
  EXPECT_THROW(render("{% for i in range(101) %}x{% endfor %}", {{"a", 1}}, limits), Error);
  limits.max_steps = 10;
  EXPECT_THROW(render("{% for i in range(11) %}{% endfor %}", {{"a", 1}}, limits), Error);
}

TEST(ChatTemplateLimits, LargeHonestPromptsPass) {
  Json messages = Json::array();
  for (int i = 0; i < 1000; ++i)
    messages.push_back(
        {{"role", i % 2 ? "assistant" : "user"}, {"content", repeat("A sentence of a long talk. ", 40)}});
  std::string source = read_file("tests/text/templates/qwen3_style.jinja");
  EXPECT_GT(render(source, Json{{"messages", messages}}).size(), 1'000'000u);
}

TEST(ChatTemplateErrors, NameTheLineAndTheReason) {
  expect_error(Code::kBadData, "line 3: unexpected", "a\n\n{% if x %}{{ y %}");
  expect_error(Code::kBadData, "line 2: there is no filter named 'nosuch'", "\n{{ x | nosuch }}");
  expect_error(Code::kBadData, "line 1: the tag 'include' is unknown or not supported", "{% include 'x' %}");
  expect_error(Code::kBadData, "expected {% endif %}, found the end", "{% if x %}");
  expect_error(Code::kInvalidArgument, "line 2: Roles must alternate!",
               "\n{{ raise_exception('Roles must alternate!') }}");
  expect_error(Code::kInvalidArgument, "line 1: 'x' is undefined", "{{ x.y }}");
  expect_error(Code::kBadData, "at most", std::string(2 << 20, 'x'));
}

// Broken templates: every prefix and every single damaged byte of a real one ends in output or Error, nothing else.
TEST(ChatTemplateErrors, DamagedTemplatesFailCleanly) {
  std::string source = read_file("tests/text/templates/glm45_style.jinja");
  Json variables{
      {"messages", {{{"role", "user"}, {"content", "\xff\xc3 <b>"}}, {{"role", "assistant"}, {"content", "ok"}}}}};
  size_t errors = 0;
  auto attempt = [&](const std::string& text) {
    try {
      render(text, variables);
    } catch (const Error& e) {
      EXPECT_NE(e.code(), Code::kInternal) << e.what();
      ++errors;
    }
  };
  for (size_t n = 0; n < source.size(); n += 3) attempt(source.substr(0, n));
  const std::string damage = "{}%#()[]'\"\\|.-+\n\xff 9";
  for (size_t i = 0; i < source.size(); i += 2) {
    std::string text = source;
    text[i] = damage[i * 7 % damage.size()];
    attempt(text);
  }
  EXPECT_GT(errors, source.size() / 4);
}

}  // namespace
}  // namespace moectl
