// tokenize_lines TOKENIZER_JSON: answers each line of standard input with one line of JSON. A JSON string is encoded
// (without begin of sentence), an array of ids is decoded to [with special tokens, without].
#include <iostream>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace {

using tandem::text::Tokenizer;

tandem::json::Value answer(const Tokenizer& tokenizer, simdjson::dom::element line) {
  std::string_view text;
  tandem::json::Array result;
  if (!line.get(text)) {
    for (int32_t id : tokenizer.encode(text, false)) result.emplace_back(id);
    return result;
  }
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
