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

}  // namespace
}  // namespace tandem::text
