// What a loaded tokenizer consists of. Private to the room: tokenizer_load.cc fills it, tokenizer.cc uses it.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace tandem::text {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using StringIds = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

struct Tokenizer::Impl {
  StringIds id_of_content;         // as spelled in the file: vocabulary and added tokens
  StringIds id_of_word;            // by bytes, without added tokens; filled where ignore_merges needs it
  std::vector<std::string> bytes;  // [vocab_size]; empty: no such id
  std::vector<bool> special;       // [vocab_size]
  bool ignore_merges = false;
  Bpe bpe;
  AddedTokens raw_tokens;         // looked for first
  Normalizer normalizer;          // then each text between them passes here
  AddedTokens normalized_tokens;  // then these are looked for, normalized themselves
  PreTokenizer pre_tokenizer;
  std::optional<int32_t> bos, eos;
};

// The bytes that a vocabulary string stands for: every byte is spelled as one printable character (GPT-2's table).
// nullopt where a character is not of that alphabet; the string then stands for its own bytes.
std::optional<std::string> byte_level_decode(std::string_view spelled);
// The character that spells this byte, in UTF-8.
std::string byte_level_encode(unsigned char byte);

Result<std::unique_ptr<Tokenizer::Impl>> parse_tokenizer(std::string_view json, std::string_view config,
                                                         std::string_view name);

}  // namespace tandem::text
