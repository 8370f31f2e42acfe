// tokenize_lines TOKENIZER_JSON: answers each line of standard input with one line of JSON. A JSON string is encoded
// (without begin of sentence), an array of ids is decoded to [with special tokens, without], an object with template,
// bos, eos, messages and add_generation_prompt is rendered to a string, or to {"error": message}. The oracles'
// counterpart.
#include <iostream>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace {

using tandem::text::Tokenizer;

tandem::json::Value rendered(simdjson::dom::element line) {
  std::vector<tandem::text::ChatMessage> messages;
  for (simdjson::dom::element message : line["messages"].get_array()) {
    messages.push_back(
        {std::string(std::string_view{message["role"]}), std::string(std::string_view{message["content"]})});
  }
  std::string bos(std::string_view{line["bos"]}), eos(std::string_view{line["eos"]});
  auto parsed = tandem::text::ChatTemplate::parse(std::string_view{line["template"]}, bos, eos, "template");
  auto text = parsed ? parsed->render(messages, bool{line["add_generation_prompt"]}, false) : parsed.error();
  if (!text) return tandem::json::Object{{"error", text.error().message}};
  return tandem::json::Value(*text);
}

tandem::json::Value answer(const Tokenizer& tokenizer, simdjson::dom::element line) {
  std::string_view text;
  tandem::json::Array result;
  if (!line.get(text)) {
    for (int32_t id : tokenizer.encode(text, false)) result.emplace_back(id);
    return result;
  }
  if (line.is_object()) return rendered(line);
  std::vector<int32_t> ids;
  for (simdjson::dom::element id : line.get_array()) ids.push_back(static_cast<int32_t>(int64_t{id}));
  for (bool skip : {false, true}) result.emplace_back(tokenizer.decode(ids, skip));
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::cerr << "usage: tokenize_lines TOKENIZER_JSON < LINES\n", 2;
  auto tokenizer = Tokenizer::load(argv[1]);
  if (!tokenizer) return std::cerr << tokenizer.error().message << '\n', 1;
  for (std::string line; std::getline(std::cin, line);) {
    auto document = tandem::json::Document::parse(line, "standard input");
    if (!document) return std::cerr << document.error().message << '\n', 1;
    std::cout << tandem::json::dump(answer(**tokenizer, document->root())) << '\n';
  }
}
