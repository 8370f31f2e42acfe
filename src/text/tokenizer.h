// Tokenizer: byte-level BPE as in tokenizer.json (Hugging Face "tokenizers"), with its normalizer and pre-tokenizer
// sequence, added and special tokens and decoder. Immutable after load; encode and decode from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace tandem::text {

class Tokenizer {
 public:
  struct Impl;  // tokenizer_impl.h, this room's own

  // Parses tokenizer.json, and tokenizer_config.json beside it where there is one (begin and end of sentence). A
  // component that is not understood is an error that names it: never garbage later.
  static Result<std::shared_ptr<const Tokenizer>> load(const std::string& path);
  // The same from bytes. config: tokenizer_config.json, empty where there is none. name: of the file, for messages.
  static Result<std::shared_ptr<const Tokenizer>> parse(std::string_view json, std::string_view config,
                                                        std::string_view name);
  ~Tokenizer();

  // Text to ids. Added tokens in the text are recognised. add_bos: put the begin-of-sentence token first, as
  // tokenizer_config.json's add_bos_token asks (see bos_id()). text must be valid UTF-8; other bytes are encoded as
  // U+FFFD.
  std::vector<int32_t> encode(std::string_view text, bool add_bos) const;
  // Ids to text, exactly as transformers' decode with clean_up_tokenization_spaces=false. Ids out of range are skipped.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // The raw bytes of one token (incomplete characters possible); empty for unknown ids.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  std::optional<int32_t> token_id(std::string_view content) const;
  int32_t vocab_size() const;             // one more than the largest id
  std::optional<int32_t> bos_id() const;  // set from tokenizer_config.json when add_bos_token is true
  std::optional<int32_t> eos_id() const;

 private:
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem::text
