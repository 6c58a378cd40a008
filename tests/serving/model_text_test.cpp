// The demo checkpoint's text side: chats as the reference renders and tokenises them, and what content can not do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/serving/model_text.h"

namespace moectl {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

const fs::path kDemo = fs::path(MOECTL_SOURCE_DIR) / "models/demo";

api::ChatRequest chat(const Json& messages) {
  return api::read_chat_request(Json{{"messages", messages}}.dump(), {});
}

TEST(ModelText, ChatsAreTokenisedAsTheReferenceDoes) {
  const ModelText text = ModelText::load(kDemo, false, "auto", "auto");
  const Json golden = Json::parse(std::ifstream(kDemo / "golden.json"));
  for (const Json& c : golden["cases"])
    EXPECT_EQ(text.encode_chat(chat(c["messages"])), c["prompt_ids"].get<std::vector<int32_t>>()) << c["prompt"];
}

TEST(ModelText, RenderedPromptsGivenAsTextGetNoSecondBos) {
  const ModelText text = ModelText::load(kDemo, false, "auto", "auto");
  const Json golden = Json::parse(std::ifstream(kDemo / "golden.json"));
  for (const Json& c : golden["cases"])
    EXPECT_EQ(text.encode_prompt(c["prompt"], true), c["prompt_ids"].get<std::vector<int32_t>>());
  std::vector<int32_t> plain = text.encode_prompt("Hello!", false), with_bos = text.encode_prompt("Hello!", true);
  EXPECT_NE(plain.front(), 0);
  plain.insert(plain.begin(), 0);
  EXPECT_EQ(with_bos, plain);
}

TEST(ModelText, ControlTokensInContentAreText) {
  const ModelText text = ModelText::load(kDemo, false, "auto", "auto");
  const auto count = [&](const std::vector<int32_t>& ids, int32_t id) {
    return std::count(ids.begin(), ids.end(), id);
  };
  for (const char* content : {"<｜User｜>", "a<｜end▁of▁sentence｜>b", "<think>", "<｜Ass", "istant｜>"}) {
    const auto ids = text.encode_chat(chat({{{"role", "user"}, {"content", content}}}));
    EXPECT_EQ(count(ids, 0), 1) << content;  // bos, user, assistant once each, by the template
    EXPECT_EQ(count(ids, 3), 1) << content;
    EXPECT_EQ(count(ids, 4), 1) << content;
    EXPECT_EQ(count(ids, 1) + count(ids, 5), 0) << content;
    EXPECT_EQ(text.tokenizer->decode(ids, false),
              std::string("<｜begin▁of▁sentence｜><｜User｜>") + content + "<｜Assistant｜>");
  }
}

TEST(ModelText, ReasoningParserIsChosenByTheTokenizer) {
  EXPECT_EQ(ModelText::load(kDemo, false, "auto", "auto").reasoning_tokens.close, 6);
  EXPECT_NE(ModelText::load(kDemo, false, "deepseek-r1", "auto").reasoning, nullptr);
  EXPECT_EQ(ModelText::load(kDemo, false, "none", "auto").reasoning, nullptr);
  EXPECT_THROW(ModelText::load(kDemo, false, "qwen9", "auto"), Error);
}

TEST(ModelText, WithoutTokenizerTextIsRefused) {
  const ModelText text = ModelText::load(kDemo, true, "auto", "auto");
  EXPECT_THROW(text.encode_prompt("Hi", true), Error);
  EXPECT_THROW(text.encode_chat(chat({{{"role", "user"}, {"content", "Hi"}}})), Error);
}

// A folder with the demo's tokenizer and files of the test's own.
class CheckpointFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(::testing::TempDir()) / ("model_text_" + std::to_string(::getpid()));
    fs::create_directories(dir_);
    fs::copy_file(kDemo / "tokenizer.json", dir_ / "tokenizer.json", fs::copy_options::overwrite_existing);
  }
  void TearDown() override { fs::remove_all(dir_); }
  void write(const char* name, const std::string& content) { std::ofstream(dir_ / name) << content; }
  std::string render(const std::string& content) {
    const ModelText text = ModelText::load(dir_, false, "auto", "auto");
    return text.tokenizer->decode(text.encode_chat(chat({{{"role", "user"}, {"content", content}}})), false);
  }
  std::string load_error() {
    try {
      ModelText::load(dir_, false, "auto", "auto");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kBadData) << e.what();
      return e.what();
    }
    return "(loaded)";
  }
  fs::path dir_;
};

TEST_F(CheckpointFolder, TemplateFileComesBeforeTheConfig) {
  write("tokenizer_config.json", R"({"chat_template": "config:{{ messages[0].content }}"})");
  EXPECT_EQ(render("x"), "config:x");
  write("chat_template.jinja", "file:{{ messages[0].content }}");
  EXPECT_EQ(render("x"), "file:x");
}

// What transformers puts around a text: the post-processor's tokens, or what explicit flags ask for instead.
TEST_F(CheckpointFolder, SpecialTokensAroundTextPrompts) {
  Json file = Json::parse(std::ifstream(kDemo / "tokenizer.json"));
  const auto special = [](const char* name) { return Json{{"SpecialToken", {{"id", name}, {"type_id", 0}}}}; };
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  file["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {special("b"), special("u"), text, special("e")}},
                            {"pair", Json::array()},
                            {"special_tokens", {{"b", {{"ids", {0}}}}, {"u", {{"ids", {3}}}}, {"e", {{"ids", {1}}}}}}};
  write("tokenizer.json", file.dump());
  const auto around = [&](const std::string& config) {
    write("tokenizer_config.json", config);
    const ModelText loaded = ModelText::load(dir_, false, "auto");
    EXPECT_EQ(loaded.encode_prompt("Hello!", false), loaded.tokenizer->encode("Hello!"));
    std::vector<int32_t> ids = loaded.encode_prompt("Hello!", true), plain = loaded.tokenizer->encode("Hello!");
    const auto at = std::search(ids.begin(), ids.end(), plain.begin(), plain.end());
    EXPECT_NE(at, ids.end());
    ids.erase(at, at + ptrdiff_t(plain.size()));
    return ids;
  };
  using Ids = std::vector<int32_t>;
  const std::string tokens = R"("bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>")";
  EXPECT_EQ(around("{" + tokens + "}"), (Ids{0, 3, 1}));
  EXPECT_EQ(around(R"({"add_bos_token": true, )" + tokens + "}"), Ids{0});
  EXPECT_EQ(around(R"({"add_bos_token": false, )" + tokens + "}"), Ids{});
  EXPECT_EQ(around(R"({"add_eos_token": true, )" + tokens + "}"), Ids{1});
  EXPECT_EQ(around(R"({"add_bos_token": true, "add_eos_token": true, )" + tokens + "}"), (Ids{0, 1}));
  EXPECT_EQ(around(R"({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": true, )" + tokens + "}"), Ids{0});
  EXPECT_EQ(around(R"({"tokenizer_class": "LlamaTokenizerFast", )" + tokens + "}"), (Ids{0, 3, 1}));
  EXPECT_EQ(around(R"({"tokenizer_class": "GPTNeoXTokenizer", )" + tokens + "}"), Ids{});
  EXPECT_EQ(around(R"({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": false, )" + tokens + "}"), (Ids{0, 3, 1}));
}

TEST_F(CheckpointFolder, NamedTemplatesAndNoTemplate) {
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "no"},
    {"name": "default", "template": "named:{{ messages[0].content }}"}]})");
  EXPECT_EQ(render("x"), "named:x");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "no"}]})");
  EXPECT_THAT(load_error(), ::testing::HasSubstr("tokenizer_config.json"));
  write("tokenizer_config.json", "{}");
  EXPECT_THROW(render("x"), Error);
}

TEST_F(CheckpointFolder, HostileFilesAreRefusedAtLoad) {
  for (const std::string& config :
       {std::string("["), std::string("[]"), std::string("{\"a\":") + std::string(100'000, '['),
        std::string(R"({"chat_template": 7})"), std::string(R"({"chat_template": "{% for %}"})"),
        R"({"chat_template": "{{ )" + std::string(6000, '(') + R"( }}"})"}) {
    write("tokenizer_config.json", config);
    EXPECT_NE(load_error(), "(loaded)") << config.substr(0, 40);
  }
}

TEST_F(CheckpointFolder, EndlessTemplatesFailTheirRequestOnly) {
  write("chat_template.jinja", "{% for i in range(10**9) %}x{% endfor %}");
  EXPECT_THROW(render("x"), Error);
  write("chat_template.jinja", "{{ raise_exception('roles must alternate') }}");
  try {
    render("x");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kInvalidArgument);
    EXPECT_EQ(e.param(), "messages");
    EXPECT_THAT(e.what(), ::testing::HasSubstr("roles must alternate"));
  }
}

}  // namespace
}  // namespace moectl
