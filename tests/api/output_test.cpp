// Answers become reasoning, content and tool calls as other people's parsers read them (output_cases.json, written by
// make_output_cases.py), and the same however the text arrives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "core/api/output_parser.h"

namespace moectl::api {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Json& cases() {
  static const Json json = Json::parse(std::ifstream(std::string(MOECTL_SOURCE_DIR) + "/tests/api/output_cases.json"));
  return json;
}

ToolsJson tools() {
  static const auto json =
      std::make_shared<const nlohmann::ordered_json>(nlohmann::ordered_json::parse(cases()["tools"].dump()));
  return json;
}

OutputParser::Options with_tools(const std::string& format) {
  return {.tools = find_tool_format(format), .tool_schemas = tools()};
}

struct Output {
  std::string reasoning, content;
  std::vector<ToolCallDelta> calls;

  bool operator==(const Output& other) const {
    return reasoning == other.reasoning && content == other.content &&
           std::equal(calls.begin(), calls.end(), other.calls.begin(), other.calls.end(), [](auto& a, auto& b) {
             return a.index == b.index && a.id == b.id && a.name == b.name && a.arguments == b.arguments;
           });
  }
};
void PrintTo(const Output& o, std::ostream* out) {
  *out << "reasoning [" << o.reasoning << "] content [" << o.content << "]";
  for (const auto& c : o.calls) *out << " " << c.index << ":" << c.name << "(" << c.arguments << ")";
}

// What clients do with increments, and what they may rely on.
void add(Output& sum, OutputDelta&& delta) {
  sum.reasoning += delta.reasoning;
  sum.content += delta.content;
  for (ToolCallDelta& call : delta.tool_calls) {
    const bool first = call.index == int(sum.calls.size());
    EXPECT_EQ(first, !call.name.empty()) << "the first part of a call, and no other, has its name";
    EXPECT_TRUE(first || call.index + 1 == int(sum.calls.size())) << "calls do not mix";
    append_tool_call(sum.calls, std::move(call));
  }
}

// The answer in pieces that end at `cuts`.
Output parse(const OutputParser::Options& options, std::string_view text, const std::set<size_t>& cuts = {}) {
  OutputParser parser(options);
  Output sum;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    add(sum, parser.push(text.substr(begin, cut - begin)));
    begin = cut;
  }
  add(sum, parser.push(text.substr(begin)));
  add(sum, parser.finish());
  return sum;
}

std::set<size_t> random_cuts(std::mt19937& rng, size_t size) {
  std::set<size_t> cuts;
  const size_t count = size ? rng() % std::min<size_t>(size, 40) : 0;
  for (size_t i = 0; i < count; ++i) cuts.insert(rng() % size);
  return cuts;
}

// Whole, byte by byte and in random pieces: one result.
Output parse_in_pieces(const OutputParser::Options& options, const std::string& text, int num_random = 8) {
  const Output whole = parse(options, text);
  std::set<size_t> every;
  for (size_t i = 1; i < text.size(); ++i) every.insert(i);
  EXPECT_EQ(parse(options, text, every), whole) << "byte by byte: " << text;
  std::mt19937 rng(unsigned(text.size()));
  for (int i = 0; i < num_random; ++i)
    EXPECT_EQ(parse(options, text, random_cuts(rng, text.size())), whole) << "in pieces: " << text;
  return whole;
}

std::string trimmed(const std::string& text) {
  const size_t begin = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  return text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

Json calls_json(const Output& output) {
  Json list = Json::array();
  for (const auto& call : output.calls)
    list.push_back({{"name", call.name}, {"arguments", Json::parse(call.arguments, nullptr, false)}});
  return list;
}

TEST(Output, ToolCallsAreWhatTheReferenceReads) {
  std::set<std::string> formats;
  for (const Json& c : cases()["tool_calls"]) {
    formats.insert(c["format"]);
    const Output output = parse_in_pieces(with_tools(c["format"]), c["text"]);
    EXPECT_EQ(calls_json(output), c["calls"]) << c["text"];
    EXPECT_EQ(trimmed(output.content), c["content"].get<std::string>()) << c["text"];
    if (c["calls"].empty()) {
      EXPECT_EQ(output.content, c["text"].get<std::string>()) << "an answer without calls is unchanged";
    }
  }
  EXPECT_EQ(formats.size(), 8u);
}

TEST(Output, ReasoningIsWhatTheReferenceReads) {
  for (const Json& c : cases()["reasoning"]) {
    const OutputParser::Options options{.reasoning = find_reasoning_format(c["format"].get<std::string>())};
    // The tool marker that ends reasoning stays in the content for the next parser; here that is a splitter's business.
    ReasoningSplitter splitter(options.reasoning, false, true);
    auto parts = splitter.push(c["text"].get<std::string>());
    const auto rest = splitter.finish();
    EXPECT_EQ(trimmed(parts.reasoning + rest.reasoning), c["reasoning"].get<std::string>()) << c["text"];
    EXPECT_EQ(trimmed(parts.content + rest.content), c["content"].get<std::string>()) << c["text"];
    parse_in_pieces(options, c["text"]);
  }
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

TEST(Output, HarmonyIsWhatItsAuthorsParserReads) {
  const OutputParser::Options options{
      .reasoning = find_reasoning_format("gpt-oss"), .tools = find_tool_format("openai"), .tool_schemas = tools()};
  for (const Json& c : cases()["harmony"]) {
    OutputParser parser(options);
    Output output;
    for (const std::string token : c["tokens"])
      add(output, token.starts_with('<') ? parser.mark(token) : parser.push(from_hex(token)));
    add(output, parser.finish());
    Output expected;
    for (const Json& m : c["messages"]) {
      const std::string text = m["text"], recipient = m["recipient"].is_null() ? "" : m["recipient"].get<std::string>();
      if (recipient.starts_with("functions.")) {
        expected.calls.push_back(
            {.index = int(expected.calls.size()), .name = recipient.substr(10), .arguments = text});
      } else {
        std::string& field = m["channel"] == "analysis" ? expected.reasoning : expected.content;
        field += (field.empty() ? "" : "\n") + text;
      }
    }
    EXPECT_EQ(output, expected) << c["tokens"];
  }
}

TEST(Output, HarmonyWithoutToolsOrReasoningIsContent) {
  const auto run = [](const OutputParser::Options& options, const std::vector<std::string>& tokens) {
    OutputParser parser(options);
    Output output;
    for (const std::string& token : tokens)
      add(output, token.starts_with("<|") ? parser.mark(token) : parser.push(token));
    add(output, parser.finish());
    return output;
  };
  const ReasoningFormat* reasoning = find_reasoning_format("gpt_oss");
  const ToolFormat* harmony = find_tool_format("harmony");
  const std::vector<std::string> call = {
      "<|channel|>", "commentary to=functions.f ", "<|constrain|>", "json", "<|message|>", "{}", "<|call|>"};
  EXPECT_EQ(run({.reasoning = reasoning}, call), (Output{.content = "{}"}));
  EXPECT_EQ(run({.reasoning = reasoning, .tools = harmony}, call), (Output{.calls = {{0, "", "f", "{}"}}}));
  EXPECT_EQ(run({.tools = harmony}, {"<|channel|>", "analysis", "<|message|>", "why"}), (Output{.content = "why"}));
  // A model that leaves the format, answers cut in a header or in the arguments, arguments that are missing.
  EXPECT_EQ(run({.reasoning = reasoning}, {"Just", " text"}), (Output{.content = "Just text"}));
  EXPECT_EQ(run({.reasoning = reasoning}, {"<|channel|>", "fin"}), Output{});
  EXPECT_EQ(
      run({.reasoning = reasoning}, {"<|channel|>", "final", "<|message|>", "a", "<|end|>", "<|start|>", "assis"}),
      (Output{.content = "a"}));
  EXPECT_EQ(run({.tools = harmony}, {"<|channel|>", "commentary to=functions.f", "<|message|>", "{\"a\": "}),
            (Output{.calls = {{0, "", "f", "{\"a\": "}}}));
  EXPECT_EQ(run({.tools = harmony}, {" to=functions.f", "<|channel|>", "commentary", "<|message|>", "<|call|>"}),
            (Output{.calls = {{0, "", "f", "{}"}}}));
  // Tools of the model's own run nowhere here: what it writes to them is no answer.
  EXPECT_EQ(run({.reasoning = reasoning, .tools = harmony},
                {"<|channel|>", "analysis to=python", "<|message|>", "print(1)", "<|end|>"}),
            (Output{.reasoning = "print(1)"}));
  EXPECT_THAT(run({.reasoning = reasoning}, {std::string(5000, 'x'), "y"}).content, ::testing::EndsWith("xy"));
}

struct Case {
  const char* format;
  std::string text;
  Output expected;
};

// Defined results for what models get wrong, and for answers that max_tokens cuts.
TEST(Output, MalformedCallsAreContentOrAsFarAsTheyCame) {
  const std::string deepseek = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>";
  const Case kCases[] = {
      // no JSON, no name, a name that is no string: content
      {"hermes", "<tool_call>not json</tool_call>", {.content = "<tool_call>not json</tool_call>"}},
      {"hermes", "The <tool_call> tag", {.content = "The <tool_call> tag"}},
      {"hermes",
       "<tool_call>{\"arguments\": {}}</tool_call>",
       {.content = "<tool_call>{\"arguments\": {}}</tool_call>"}},
      {"hermes", "<tool_call>{\"name\": 3}</tool_call>", {.content = "<tool_call>{\"name\": 3}</tool_call>"}},
      {"hermes", "<tool_call>[]</tool_call> ", {.content = "<tool_call>[]</tool_call> "}},
      {"hermes", "<tool_call", {.content = "<tool_call"}},
      {"hermes", "a <tool_call>{\"na", {.content = "a <tool_call>{\"na"}},
      // a good call after a bad one
      {"hermes",
       "<tool_call><tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
       {.content = "<tool_call>", .calls = {{0, "", "f", "{}"}}}},
      // arguments first, missing, a string, named otherwise, with members between
      {"hermes",
       "<tool_call>{\"arguments\": {\"a\": [1]}, \"name\": \"f\"}</tool_call>",
       {.calls = {{0, "", "f", "{\"a\": [1]}"}}}},
      {"hermes", "<tool_call>{\"name\": \"f\"}</tool_call>", {.calls = {{0, "", "f", "{}"}}}},
      {"hermes",
       "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}</tool_call>",
       {.calls = {{0, "", "f", "\"{\\\"a\\\":1}\""}}}},
      {"hermes",
       "<tool_call>{\"id\": {\"x\": \"}\"}, \"name\": \"f\", \"parameters\": {\"a\": 1}, \"t\": 1}</tool_call>",
       {.calls = {{0, "", "f", "{\"a\": 1}"}}}},
      // escapes in the name; markers, braces and quotes inside of strings
      {"hermes",
       "<tool_call>{\"name\": \"\\u0066\", \"arguments\": {\"a\": \"</tool_call>\\\"}{<tool_call>\"}}</tool_call>",
       {.calls = {{0, "", "f", "{\"a\": \"</tool_call>\\\"}{<tool_call>\"}"}}}},
      // braces that are missing or too many, an end that is missing, a cut
      {"hermes",
       "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call>x",
       {.content = "x", .calls = {{0, "", "f", "{\"a\": 1}"}}}},
      {"hermes",
       "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}}</tool_call>",
       {.calls = {{0, "", "f", "{\"a\": 1}"}}}},
      {"hermes",
       "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1</tool_call>",
       {.calls = {{0, "", "f", "{\"a\": 1"}}}},
      {"hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}", {.calls = {{0, "", "f", "{\"a\": 1}"}}}},
      {"hermes",
       "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"lon",
       {.calls = {{0, "", "f", "{\"a\": \"lon"}}}},
      {"hermes",
       "<tool_call>{\"name\": \"f\", \"arguments\": {}}\n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>",
       {.calls = {{0, "", "f", "{}"}, {1, "", "g", "{}"}}}},
      {"hermes",
       "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>{\"na",
       {.calls = {{0, "", "f", "{}"}}}},
      // text after calls is not lost; blanks beside them are layout
      {"hermes",
       "Hi.\n\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n\nDone \n",
       {.content = "Hi.Done \n", .calls = {{0, "", "f", "{}"}}}},
      {"hunyuan",
       "<tool_calls>[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {\"a\": []}}]</tool_calls>",
       {.calls = {{0, "", "f", "{}"}, {1, "", "g", "{\"a\": []}"}}}},

      {"deepseek_v3",
       "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
       {.content = "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>"}},
      {"deepseek_v3",
       deepseek + "function<｜tool▁sep｜>f\n```json\n{\"a\": \"`x`\"",
       {.calls = {{0, "", "f", "{\"a\": \"`x`\""}}}},
      {"deepseek_v3",
       deepseek + "function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```",
       {.calls = {{0, "", "f", "{\"a\": 1}"}}}},
      {"deepseek_v3",
       deepseek + "function<｜tool▁sep｜>f\n{\"a\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
       {.calls = {{0, "", "f", "{\"a\": 1}"}}}},
      {"deepseek_v3", deepseek + "function<｜tool▁sep｜>f\n```jso", {.calls = {{0, "", "f", ""}}}},
      {"deepseek_v3", deepseek + "function<｜tool▁se", {.content = deepseek + "function<｜tool▁se"}},
      {"deepseek_v31",
       deepseek + "f<｜tool▁sep｜>{\"a\": <｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
       {.calls = {{0, "", "f", "{\"a\":"}, {1, "", "g", "{}"}}}},
      {"deepseek_v31", deepseek + "f<｜tool▁call▁end｜>", {.content = deepseek + "f<｜tool▁call▁end｜>"}},
      {"deepseek_v31",
       deepseek + "f<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜>",
       {.calls = {{0, "", "f", "{}"}}}},
      {"deepseek_v31", deepseek + "f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁e", {.calls = {{0, "", "f", "{\"a\": 1}"}}}},
      {"kimi_k2",
       "<|tool_calls_section_begin|><|tool_call_begin|>functions.a.b:12<|tool_call_argument_begin|>{}<|tool_call_end|>"
       "<|tool_call_begin|>plain<|tool_call_argument_begin|>{\"a\": 1} <|tool_call_end|>",
       {.calls = {{0, "functions.a.b:12", "a.b", "{}"}, {1, "plain", "plain", "{\"a\": 1}"}}}},

      {"qwen3_coder", "<tool_call>\n<function=now>\n</tool_call>", {.calls = {{0, "", "now", "{}"}}}},
      {"qwen3_coder", "<function=now></function>", {.calls = {{0, "", "now", "{}"}}}},
      {"qwen3_coder", "<tool_call>\nWhat?", {.content = "<tool_call>\nWhat?"}},
      {"qwen3_coder",
       "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar",
       {.calls = {{0, "", "get_weather", "{\"city\": \"Par"}}}},
      {"qwen3_coder",
       "<tool_call>\n<function=get_weather>\n<parameter=city>\na\n\n</para",
       {.calls = {{0, "", "get_weather", "{\"city\": \"a\\n"}}}},
      {"qwen3_coder",
       "<tool_call>\n<function=get_weather>\n<parameter=days>\n1\n<parameter=hourly>\nTrue\n</function>\n</tool_call>",
       {.calls = {{0, "", "get_weather", "{\"days\": 1, \"hourly\": true}"}}}},
      {"qwen3_coder",
       "<tool_call><function=get_weather><parameter=days>soon</parameter></function></tool_call>",
       {.calls = {{0, "", "get_weather", "{\"days\": \"soon\"}"}}}},
      {"qwen3_coder",
       "<tool_call><function=unknown><parameter=n>1</parameter></function></tool_call>",
       {.calls = {{0, "", "unknown", "{\"n\": \"1\"}"}}}},
      {"glm45",
       "<tool_call>unknown\n<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n<arg_key>s</arg_key><arg_value>x "
       "y</arg_value></tool_call>",
       {.calls = {{0, "", "unknown", "{\"n\": 1, \"s\": \"x y\"}"}}}},
      {"glm45", "<tool_call>now</tool_call>", {.calls = {{0, "", "now", "{}"}}}},
      {"glm45", "A <tool_call> is a\nx", {.content = "A <tool_call> is a\nx"}},
      {"glm45",
       "<tool_call>get_weather\n<arg_key>days</arg_key>\n<arg_value>1",
       {.calls = {{0, "", "get_weather", "{\"days\": "}}}},
      {"mistral",
       "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}] and",
       {.content = "and", .calls = {{0, "", "f", "{}"}}}},
      {"mistral",
       "[TOOL_CALLS]f{\"a\": 1}[TOOL_CALLS]g[ARGS]{}",
       {.calls = {{0, "", "f", "{\"a\": 1}"}, {1, "", "g", "{}"}}}},
      {"mistral", "[TOOL_CALLS]f[ARGS]{\"a\": \"[TOOL_CALLS]", {.calls = {{0, "", "f", "{\"a\": \"[TOOL_CALLS]"}}}},
  };
  for (const Case& c : kCases) EXPECT_EQ(parse_in_pieces(with_tools(c.format), c.text, 20), c.expected) << c.text;
}

TEST(Output, ReasoningEndsAtACallAndAnswersMayBeWrapped) {
  const std::string call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
  OutputParser::Options options = with_tools("hermes");
  options.reasoning = find_reasoning_format("qwen3");
  EXPECT_EQ(parse_in_pieces(options, "<think>\nhm\n" + call),
            (Output{.reasoning = "hm", .calls = {{0, "", "now", "{}"}}}));
  EXPECT_EQ(parse_in_pieces(options, "<think>hm</think>\n\nok\n" + call),
            (Output{.reasoning = "hm", .content = "ok", .calls = {{0, "", "now", "{}"}}}));
  options.reasoning_opened = true;
  EXPECT_EQ(parse_in_pieces(options, "hm" + call), (Output{.reasoning = "hm", .calls = {{0, "", "now", "{}"}}}));
  options.tools = nullptr;  // without tools it is a thought about calls
  EXPECT_EQ(parse_in_pieces(options, "hm" + call), (Output{.reasoning = "hm" + call}));

  const OutputParser::Options hunyuan{.reasoning = find_reasoning_format("hunyuan-a13b")};
  EXPECT_EQ(parse_in_pieces(hunyuan, "<think>\nhm\n</think>\n<answer>\na < b </ans>\n</answer>"),
            (Output{.reasoning = "hm", .content = "a < b </ans>"}));
  EXPECT_EQ(parse_in_pieces(hunyuan, "<answer>a</answer>"), (Output{.content = "a"}));
  EXPECT_EQ(parse_in_pieces(hunyuan, "<think></think>a <answer>b</answer>"),
            (Output{.content = "a <answer>b</answer>"}));
  EXPECT_EQ(parse_in_pieces(hunyuan, "<think>x</think><answer>cut </answ"),
            (Output{.reasoning = "x", .content = "cut </answ"}));
  EXPECT_EQ(parse_in_pieces(hunyuan, "<answ"), (Output{.content = "<answ"}));
}

TEST(Output, OneCallOnlyWhenParallelCallsAreOff) {
  OutputParser::Options options = with_tools("mistral");
  options.one_call = true;
  EXPECT_EQ(parse_in_pieces(options, "[TOOL_CALLS]f{}[TOOL_CALLS]g{}").calls.size(), 1u);
}

// Nothing waits that is sure: names and arguments go out while the call is being written.
TEST(Output, NothingIsHeldLongerThanNeeded) {
  OutputParser hermes(with_tools("hermes"));
  EXPECT_EQ(hermes.push("a <").content, "a");
  EXPECT_EQ(hermes.push("b").content, " <b");
  EXPECT_EQ(hermes.push("<tool_call>\n{\"name\": \"get").tool_calls.size(), 0u);
  EXPECT_EQ(hermes.push("_x\"").tool_calls.at(0).name, "get_x");
  EXPECT_EQ(hermes.push(", \"arguments\": {\"a").tool_calls.at(0).arguments, "{\"a");
  EXPECT_EQ(hermes.push("\": \"lo ng").tool_calls.at(0).arguments, "\": \"lo ng");
  OutputParser coder(with_tools("qwen3_coder"));
  EXPECT_EQ(coder.push("<tool_call>\n<function=get_weather>").tool_calls.at(0).name, "get_weather");
  EXPECT_EQ(coder.push("\n<parameter=city>\nSan").tool_calls.at(0).arguments, "{\"city\": \"San");
  EXPECT_EQ(coder.push(" Fran").tool_calls.at(0).arguments, " Fran");
  OutputParser kimi(with_tools("kimi_k2"));
  EXPECT_EQ(kimi.push("<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\"")
                .tool_calls.at(0)
                .arguments,
            "{\"a\"");
  // Blanks wait for what follows them, but not without end.
  OutputParser blanks(with_tools("hermes"));
  EXPECT_EQ(blanks.push(std::string(1000, '\n')).content.size(), 1000u - 256u);
}

// Any mixture of markers and text: one result for every split, and no text of its own lost.
TEST(Output, RandomMixturesDoNotDependOnTheSplit) {
  std::mt19937 rng(7);
  for (const ToolFormat& format : tool_formats()) {
    if (format.style == CallStyle::kHarmony) continue;
    std::vector<std::string> parts = {"a",
                                      " ",
                                      "\n",
                                      "<",
                                      "{",
                                      "}",
                                      "\"",
                                      ":",
                                      ",",
                                      "\"name\": \"f\"",
                                      "\"arguments\": {\"k\": [1]}",
                                      "get_weather",
                                      "city",
                                      "days",
                                      "12",
                                      "\\",
                                      "é",
                                      "[",
                                      "]",
                                      "</",
                                      "<think>",
                                      "</think>",
                                      "```"};
    for (const std::string_view marker : markers_of(format)) parts.insert(parts.end(), 3, std::string(marker));
    OutputParser::Options options = with_tools(std::string(format.name));
    options.reasoning = find_reasoning_format("qwen3");
    for (int i = 0; i < 300; ++i) {
      std::string text;
      for (int n = int(rng() % 25); n > 0; --n) text += parts[rng() % parts.size()];
      options.reasoning_opened = rng() % 4 == 0;
      const Output output = parse_in_pieces(options, text, 3);
      if (text.find('<') == std::string::npos && text.find('[') == std::string::npos && !options.reasoning_opened) {
        EXPECT_EQ(output.content, text);
      }
    }
  }
}

TEST(Output, LongAnswersAreReadInOnePass) {
  const std::string big = "{\"a\": \"" + std::string(1 << 20, 'x') + "\"}";
  OutputParser parser(with_tools("hermes"));
  Output output;
  add(output, parser.push("<tool_call>{\"name\": \"f\", \"arguments\": "));
  for (const char c : big) add(output, parser.push(std::string_view(&c, 1)));
  add(output, parser.push("}</tool_call>"));
  add(output, parser.finish());
  EXPECT_EQ(output.calls.at(0).arguments, big);
  // A call that never says its name is no call.
  const std::string nameless = "<tool_call>{\"x\": \"" + std::string(1 << 20, 'y');
  EXPECT_EQ(parse(with_tools("hermes"), nameless), (Output{.content = nameless}));
}

TEST(Formats, NamesAreUniqueAndFound) {
  std::set<std::string_view> seen;
  for (const ToolFormat& format : tool_formats()) {
    EXPECT_EQ(find_tool_format(format.name), &format);
    EXPECT_TRUE(seen.insert(format.name).second) << format.name;
    for (const std::string_view alias : aliases_of(format.aliases)) EXPECT_TRUE(seen.insert(alias).second) << alias;
  }
  seen.clear();
  for (const ReasoningFormat& format : reasoning_formats()) {
    EXPECT_EQ(find_reasoning_format(format.name), &format);
    EXPECT_TRUE(seen.insert(format.name).second) << format.name;
    for (const std::string_view alias : aliases_of(format.aliases)) EXPECT_TRUE(seen.insert(alias).second) << alias;
  }
  EXPECT_EQ(find_tool_format("Kimi-K2"), find_tool_format("kimi_k2"));
  EXPECT_EQ(find_reasoning_format("deepseek-v3"), find_reasoning_format("deepseek_r1"));
  EXPECT_EQ(find_tool_format("qwen9"), nullptr);
  EXPECT_EQ(find_tool_format(""), nullptr);
  EXPECT_THAT(tool_format_names(), HasSubstr("hermes, "));
}

TEST(Formats, AreDetectedByTheTemplate) {
  const auto detected = [](const char* text) {
    const ToolFormat* format = detect_tool_format(text);
    return format ? format->name : std::string_view("none");
  };
  EXPECT_EQ(detected("{{ '<tool_call>\\n{\"name\": ' }}"), "hermes");
  EXPECT_EQ(detected("<tool_call>{{ name }}\\n<arg_key>"), "glm45");
  EXPECT_EQ(detected("<tool_call>\\n<function=' ~ '<parameter="), "qwen3_coder");
  EXPECT_EQ(detected("'<｜tool▁calls▁begin｜>' + '\\n```json\\n'"), "deepseek_v3");
  EXPECT_EQ(detected("'<｜tool▁calls▁begin｜>'"), "deepseek_v31");
  EXPECT_EQ(detected("<|tool_calls_section_begin|><|tool_call_begin|>"), "kimi_k2");
  EXPECT_EQ(detected("<minimax:tool_call> <invoke name="), "minimax_m2");
  EXPECT_EQ(detected("[TOOL_CALLS]"), "mistral");
  EXPECT_EQ(detected("<|channel|>final<|message|>"), "harmony");
  EXPECT_EQ(detected("{{ messages }}"), "none");
}

TEST(TypedValues, FollowTheSchema) {
  const auto schema = nlohmann::ordered_json::parse(R"([{"type": "function", "function": {"name": "f", "parameters": {
    "type": "object", "properties": {
      "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"}, "b": {"type": "boolean"},
      "o": {"type": "object"}, "a": {"type": "list[int]"}, "u": {}, "si": {"type": ["string", "null"]},
      "any": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "e": {"enum": ["x", "y"]}}}}}])");
  const struct {
    const char *key, *text, *json;
  } kCases[] = {
      {"s", "5", "\"5\""},
      {"s", "null", "\"null\""},
      {"s", " a\n\"b\" ", "\" a\\n\\\"b\\\" \""},
      {"i", " 5 ", "5"},
      {"i", "5.5", "\"5.5\""},
      {"i", "007", "\"007\""},
      {"i", "null", "null"},
      {"i", "-", "\"-\""},
      {"n", "1e3", "1e3"},
      {"n", "-0.5", "-0.5"},
      {"n", "NaN", "\"NaN\""},
      {"b", "True", "true"},
      {"b", "yes", "\"yes\""},
      {"o", "{\"a\": [1, \"x\"]}", "{\"a\": [1, \"x\"]}"},
      {"o", "{'a': 1}", "\"{'a': 1}\""},
      {"o", "[1]", "\"[1]\""},
      {"a", "[1, 2]", "[1, 2]"},
      {"u", "1", "\"1\""},
      {"si", "null", "null"},
      {"si", "nil", "\"nil\""},
      {"any", "7", "7"},
      {"any", "None", "null"},
      {"e", "x", "\"x\""},
      {"unknown", "1", "\"1\""},
  };
  for (const auto& c : kCases)
    EXPECT_EQ(typed_value(c.text, parameter_types(schema, "f", c.key), false), c.json) << c.key << " " << c.text;
  EXPECT_EQ(typed_value(" {\"a\": 1} ", kAnyType, true), "{\"a\": 1}");
  EXPECT_EQ(typed_value("a b", kAnyType, true), "\"a b\"");
  EXPECT_EQ(typed_value(std::string(100'000, '['), kAnyType, true).size(), 100'002u);
  EXPECT_EQ(escape_json("\x01"), "\\u0001");
}

}  // namespace
}  // namespace moectl::api
