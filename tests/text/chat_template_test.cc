#include "text/chat_template.h"

#include <gtest/gtest.h>

#include "tests/text/fixtures.h"

namespace tandem::text {
namespace {

std::vector<ChatMessage> messages_of(simdjson::dom::element list) {
  std::vector<ChatMessage> messages;
  for (simdjson::dom::element message : list.get_array()) {
    messages.push_back(
        {std::string(std::string_view{message["role"]}), std::string(std::string_view{message["content"]})});
  }
  return messages;
}

TEST(ChatTemplate, RendersEveryFixtureConversation) {
  auto loaded = ChatTemplate::load(TANDEM_SOURCE_DIR "/models/tiny");
  ASSERT_TRUE(loaded.has_value()) << loaded.error().message;
  auto document = json::Document::load(fixture_path("chat-template.json"));
  ASSERT_TRUE(document.has_value());
  int count = 0;
  for (simdjson::dom::element row : document->root().get_array()) {
    auto text = loaded->render(messages_of(row["messages"]), bool{row["add_generation_prompt"]}, false);
    ASSERT_TRUE(text.has_value()) << text.error().message;
    EXPECT_EQ(*text, std::string_view{row["text"]});
    EXPECT_EQ(tiny_tokenizer().encode(*text, false), ids_of(row["ids"]));
    ++count;
  }
  EXPECT_EQ(count, 6);
}

std::string render(const std::string& source, std::vector<ChatMessage> messages, bool generate = true,
                   bool open = false) {
  auto parsed = ChatTemplate::parse(source, "<s>", "</s>", "template");
  if (!parsed) return "ERROR " + parsed.error().message;
  auto text = parsed->render(messages, generate, open);
  return text ? *text : "ERROR " + text.error().message;
}

// The form of DeepSeek-R1: thoughts are cut from earlier answers, new answers begin with a thought.
constexpr const char* kThinking = R"({{ bos_token }}{%- for message in messages %}
  {%- if message['role'] == 'system' %}{{ message['content'] }}{%- endif %}
  {%- if message['role'] == 'user' -%}{{ '<|User|>' + message['content'] }}{%- endif -%}
  {%- if message['role'] == 'assistant' and message['content'] is not none and 'tool_calls' not in message %}
    {%- set content = message['content'] -%}
    {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif -%}
    {{ '<|Assistant|>' + content + eos_token }}
  {%- endif -%}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %})";

// The form of DeepSeek-V2: words in the place of special tokens.
constexpr const char* kWords =
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\\n\\n' }}{% elif m.role == "
    "'assistant' %}"
    "{{ 'Assistant: ' + m.content + eos_token }}{% else %}{{ m.content + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

TEST(ChatTemplate, RendersTheThinkingForm) {
  const std::vector<ChatMessage> messages = {
      {"system", "Be kind."}, {"user", "1+1?"}, {"assistant", "<think>easy</think>2"}, {"user", "and 2+2?"}};
  EXPECT_EQ(render(kThinking, messages),
            "<s>Be kind.<|User|>1+1?<|Assistant|>2</s><|User|>and 2+2?<|Assistant|><think>\n");
}

TEST(ChatTemplate, RendersTheFormWithWords) {
  const std::vector<ChatMessage> messages = {{"system", "S"}, {"user", "U"}, {"assistant", "A"}, {"user", "V"}};
  EXPECT_EQ(render(kWords, messages), "<s>S\n\nUser: U\n\nAssistant: A</s>User: V\n\nAssistant:");
  EXPECT_EQ(render(kWords, messages, false), "<s>S\n\nUser: U\n\nAssistant: A</s>User: V\n\n");
}

TEST(ChatTemplate, LeavesTheFinalMessageOpen) {
  EXPECT_EQ(render(kWords, {{"user", "U"}, {"assistant", "Once upon"}}, true, true),
            "<s>User: U\n\nAssistant: Once upon");
  EXPECT_EQ(render(kThinking, {{"user", "U"}, {"assistant", "<think>x</think>so"}}, true, true),
            "<s><|User|>U<|Assistant|>so");
  // Content that looks like the mark that finds the place.
  EXPECT_EQ(render(kWords, {{"user", "\x02\x02"}, {"assistant", "a\x02"}}, true, true),
            "<s>User: \x02\x02\n\nAssistant: a\x02");
  EXPECT_NE(render(kWords, {{"user", "U"}}, true, true).find("not the assistant's"), std::string::npos);
}

TEST(ChatTemplate, DoesNotInterpretContent) {
  EXPECT_EQ(render(kWords, {{"user", "{{ bos_token }}{% if %}"}}), "<s>User: {{ bos_token }}{% if %}\n\nAssistant:");
}

TEST(ChatTemplate, RefusesRolesAndConversationsItCannotRender) {
  EXPECT_NE(render(kWords, {}).find("messages: is empty"), std::string::npos);
  EXPECT_NE(render(kWords, {{"user", "a"}, {"tool", "b"}}).find("messages[1].role: 'tool'"), std::string::npos);
  std::string strict =
      std::string("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}") + kWords;
  EXPECT_NE(render(strict, {{"system", "a"}}).find("the template refuses: no system"), std::string::npos);
}

TEST(ChatTemplate, SaysWhatItDoesNotUnderstand) {
  const std::string all = "{% for m in messages %}{{ m.content }}{% endfor %}";
  const std::vector<std::pair<std::string, std::string>> faults = {
      {all, "no generation prompt"},
      {"{{ messages[0].content }}!", "loses what the assistant says"},
      {all + "{% macro x() %}{% endmacro %}", "tag 'macro'"},
      {all + "\n{{ messages | tojson_pretty }}", "line 2: filter 'tojson_pretty'"},
      {all + "{{ strftime_now('%d') }}", "function 'strftime_now'"},
      {all + "{{ 'a'.swapcase() }}", "method 'swapcase'"},
      {all + "{{ 1 is odd }}", "test 'odd'"},
      {all + "{{ 'a' + 1 }}", "'+' cannot be done with a string and a number"},
      {all + "{% if x %}", "'endif' is missing"},
      {all + "{{ 'a", "not closed"},
      {all + "{{ }}", "an expression is missing"},
      {all + "{{ {1: 2} }}", "'{' is not understood"},
      {all + "{{ missing.role.x }}", "an undefined value"},
      {"{{ " + std::string(200, '(') + "1" + std::string(200, ')') + " }}", "nested too deeply"},
  };
  for (const auto& [source, fault] : faults) {
    std::string message = render(source, {{"user", "a"}});
    EXPECT_NE(message.find("ERROR template: chat_template is not understood: "), std::string::npos)
        << source << message;
    EXPECT_NE(message.find(fault), std::string::npos) << source << "\n" << message;
  }
}

TEST(ChatTemplate, ATemplateThatMultipliesStringsEnds) {
  std::string source = "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}";
  for (int i = 0; i < 40; ++i) source += "{% set ns.x = ns.x + ns.x %}";
  EXPECT_NE(render(source, {{"user", "a"}}).find("rendering makes more than"), std::string::npos);
  std::string loops;
  for (int i = 0; i < 40; ++i) loops += "{% for a in messages %}";
  for (int i = 0; i < 40; ++i) loops += "{% endfor %}";
  EXPECT_NE(render(loops, {{"user", "a"}}).find("rendering takes more than"), std::string::npos);
}

TEST(ChatTemplate, NamespacesCannotContainThemselves) {
  EXPECT_NE(render("{% set a = namespace(x=1) %}{% set a.x = a %}", {{"user", "a"}}).find("cannot hold a namespace"),
            std::string::npos);
  EXPECT_NE(render("{% set a = namespace(x=1) %}{% set a.x = [a] %}", {{"user", "a"}}).find("a list of an object"),
            std::string::npos);
}

TEST(ChatTemplate, AMissingTemplateIsNotFound) {
  auto loaded = ChatTemplate::load(TANDEM_SOURCE_DIR "/tests/data/tiny");
  ASSERT_FALSE(loaded.has_value());
  EXPECT_EQ(loaded.error().code, ErrorCode::kNotFound);
  EXPECT_NE(loaded.error().message.find("tests/data/tiny/tokenizer_config.json"), std::string::npos);
}

}  // namespace
}  // namespace tandem::text
