// From tokenizer.json and tokenizer_config.json to a Tokenizer::Impl.
#include <algorithm>
#include <array>

#include "text/json_reader.h"
#include "text/normalizer_load.h"
#include "text/pre_tokenizer_load.h"
#include "text/tokenizer_impl.h"
#include "text/utf8.h"

namespace tandem::text {
namespace {

// Larger than any vocabulary; bounds the tables that a corrupt id would blow up.
constexpr int64_t kMaxVocab = 1 << 22;

// GPT-2's table: printable Latin-1 stands for itself, the other 68 bytes are spelled U+0100 onwards.
struct ByteAlphabet {
  std::array<uint32_t, 256> char_of_byte{};
  std::array<int16_t, 324> byte_of_char{};
  constexpr ByteAlphabet() {
    byte_of_char.fill(-1);
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      char_of_byte[b] = printable ? b : next++;
      byte_of_char[char_of_byte[b]] = static_cast<int16_t>(b);
    }
  }
};
constexpr ByteAlphabet kAlphabet;

class Loader {
 public:
  Loader(const JsonReader& root, std::string_view name) : root_(root), name_(name) {}

  Result<std::unique_ptr<Tokenizer::Impl>> load(std::string_view config);

 private:
  Status check_components();
  Status check_decoder(const JsonReader& json);
  Status read_post_processor();
  Status read_model();
  Status check_model_options(const JsonReader& model);
  Status read_vocab(const JsonReader& model);
  Status read_merges(const JsonReader& model);
  Result<int32_t> merge_part(const StringIds& ids, std::string_view part, size_t rank) const;
  Status read_added_tokens();
  Status read_config(std::string_view text);
  void index_added_tokens();
  Result<std::optional<int32_t>> config_token(const JsonReader& config, std::string_view key);
  void set_token(int32_t id, std::string_view spelled);

  const JsonReader& root_;
  std::string_view name_;
  std::unique_ptr<Tokenizer::Impl> impl_ = std::make_unique<Tokenizer::Impl>();
  std::vector<AddedToken> added_;
  std::optional<std::string> template_bos_;  // what TemplateProcessing puts before the text
};

Status Loader::check_decoder(const JsonReader& json) {
  ASSIGN_OR_RETURN(std::string_view type, json.string("type"));
  if (type == "ByteLevel") return Ok{};
  if (type != "Sequence") return json.wrong("type", fmt::format("'{}' is not understood", type));
  ASSIGN_OR_RETURN(simdjson::dom::array list, json.array("decoders"));
  size_t count = 0;
  for (simdjson::dom::element element : list) {
    ASSIGN_OR_RETURN(JsonReader entry, JsonReader::object(element, name_, json.place("decoders[0]")));
    ASSIGN_OR_RETURN(std::string_view inner, entry.string("type"));
    if (inner != "ByteLevel") return entry.wrong("type", fmt::format("'{}' is not understood", inner));
    if (++count > 1) return json.wrong("decoders", "has more than one ByteLevel");
  }
  if (count == 0) return json.wrong("decoders", "is empty");
  return Ok{};
}

Status Loader::check_components() {
  for (std::string_view key : {"truncation", "padding"}) {
    if (root_.find(key)) return root_.wrong(key, "is not understood");
  }
  ASSIGN_OR_RETURN(JsonReader decoder, root_.child("decoder"));
  return check_decoder(decoder);
}

// ByteLevel only moves offsets. TemplateProcessing may put one token before the text.
Status Loader::read_post_processor() {
  if (!root_.find("post_processor")) return Ok{};
  ASSIGN_OR_RETURN(JsonReader outer, root_.child("post_processor"));
  std::vector<JsonReader> list = {outer};
  ASSIGN_OR_RETURN(std::string_view outer_type, outer.string("type"));
  if (outer_type == "Sequence") {
    list.clear();
    ASSIGN_OR_RETURN(simdjson::dom::array processors, outer.array("processors"));
    for (simdjson::dom::element element : processors) {
      std::string place = fmt::format("{}[{}]", outer.place("processors"), list.size());
      ASSIGN_OR_RETURN(JsonReader entry, JsonReader::object(element, name_, std::move(place)));
      list.push_back(entry);
    }
  }
  for (const JsonReader& json : list) {
    ASSIGN_OR_RETURN(std::string_view type, json.string("type"));
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing") return json.wrong("type", fmt::format("'{}' is not understood", type));
    ASSIGN_OR_RETURN(simdjson::dom::array single, json.array("single"));
    bool behind_text = false;
    for (simdjson::dom::element element : single) {
      ASSIGN_OR_RETURN(JsonReader entry, JsonReader::object(element, name_, json.place("single")));
      if (entry.find("Sequence")) {
        behind_text = true;
        continue;
      }
      ASSIGN_OR_RETURN(JsonReader token, entry.child("SpecialToken"));
      ASSIGN_OR_RETURN(std::string_view content, token.string("id"));
      if (behind_text) return json.wrong("single", fmt::format("puts '{}' behind the text: not understood", content));
      if (template_bos_) return json.wrong("single", "puts two tokens before the text: not understood");
      template_bos_ = content;
    }
  }
  return Ok{};
}

void Loader::set_token(int32_t id, std::string_view spelled) {
  if (static_cast<size_t>(id) >= impl_->bytes.size()) {
    impl_->bytes.resize(id + 1);
    impl_->special.resize(id + 1);
  }
  impl_->bytes[id] = byte_level_decode(spelled).value_or(std::string(spelled));
}

Status Loader::check_model_options(const JsonReader& model) {
  if (model.find("type")) {
    ASSIGN_OR_RETURN(std::string_view type, model.string("type"));
    if (type != "BPE") return model.wrong("type", fmt::format("'{}' is not understood (BPE is)", type));
  }
  for (std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.find(key)) continue;
    ASSIGN_OR_RETURN(std::string_view value, model.string(key));
    if (!value.empty()) return model.wrong(key, fmt::format("'{}' is not understood", value));
  }
  if (auto dropout = model.find("dropout")) {
    double value = 1;
    if (dropout->get(value) || value != 0) return model.wrong("dropout", "is not understood");
  }
  // fuse_unk and unk_token concern characters without a token; here every byte has one.
  ASSIGN_OR_RETURN(bool byte_fallback, model.boolean("byte_fallback", false));
  if (byte_fallback) return model.wrong("byte_fallback", "is not understood");
  ASSIGN_OR_RETURN(impl_->ignore_merges, model.boolean("ignore_merges", false));
  return Ok{};
}

Status Loader::read_vocab(const JsonReader& model) {
  ASSIGN_OR_RETURN(JsonReader vocab, model.child("vocab"));
  simdjson::dom::object entries;
  if (model.find("vocab")->get(entries)) return model.wrong("vocab", "must be an object");
  std::vector<bool> taken;
  for (auto [key, value] : entries) {
    int64_t id = -1;
    if (value.get(id) || id < 0 || id >= kMaxVocab) {
      return vocab.wrong("", fmt::format("gives '{}' an id that is not a number from 0 to {}", key, kMaxVocab - 1));
    }
    if (static_cast<size_t>(id) >= taken.size()) taken.resize(id + 1);
    if (taken[id]) return vocab.wrong("", fmt::format("gives id {} to two tokens, one of them '{}'", id, key));
    taken[id] = true;
    if (!impl_->id_of_content.emplace(key, static_cast<int32_t>(id)).second) {
      return vocab.wrong("", fmt::format("has '{}' twice", key));
    }
    set_token(static_cast<int32_t>(id), key);
    if (impl_->ignore_merges && byte_level_decode(key)) {
      impl_->id_of_word.emplace(*byte_level_decode(key), static_cast<int32_t>(id));
    }
  }
  return Ok{};
}

Result<int32_t> Loader::merge_part(const StringIds& ids, std::string_view part, size_t rank) const {
  auto found = ids.find(part);
  if (found == ids.end()) {
    return invalid_input(
        fmt::format("{}: model.merges[{}] needs '{}', which is not in the vocabulary", name_, rank, part));
  }
  return found->second;
}

Status Loader::read_merges(const JsonReader& model) {
  ASSIGN_OR_RETURN(simdjson::dom::array list, model.array("merges"));
  const StringIds& ids = impl_->id_of_content;
  std::vector<Bpe::Merge> merges;
  for (simdjson::dom::element element : list) {
    std::string_view text, left, right;
    simdjson::dom::array pair;
    size_t rank = merges.size();
    if (!element.get(text)) {  // "a b", the older form
      size_t space = text.find(' ');
      if (space == text.npos || text.find(' ', space + 1) != text.npos) {
        return model.wrong("merges", fmt::format("[{}]: '{}' is not two tokens with a space between", rank, text));
      }
      left = text.substr(0, space), right = text.substr(space + 1);
    } else if (element.get(pair) || pair.size() != 2 || pair.at(0).get(left) || pair.at(1).get(right)) {
      return model.wrong("merges", fmt::format("[{}]: is neither \"a b\" nor [\"a\", \"b\"]", rank));
    }
    Bpe::Merge merge{};
    ASSIGN_OR_RETURN(merge.left, merge_part(ids, left, rank));
    ASSIGN_OR_RETURN(merge.right, merge_part(ids, right, rank));
    ASSIGN_OR_RETURN(merge.merged, merge_part(ids, std::string(left).append(right), rank));
    merges.push_back(merge);
  }
  std::array<int32_t, 256> id_of_byte{};
  for (int byte = 0; byte < 256; ++byte) {
    auto found = ids.find(byte_level_encode(static_cast<unsigned char>(byte)));
    if (found == ids.end()) return model.wrong("vocab", fmt::format("has no token for byte 0x{:02x}", byte));
    id_of_byte[byte] = found->second;
  }
  impl_->bpe = Bpe(id_of_byte, merges);
  return Ok{};
}

Status Loader::read_model() {
  ASSIGN_OR_RETURN(JsonReader model, root_.child("model"));
  RETURN_IF_ERROR(check_model_options(model));
  RETURN_IF_ERROR(read_vocab(model));
  return read_merges(model);
}

Status Loader::read_added_tokens() {
  if (!root_.find("added_tokens")) return Ok{};
  ASSIGN_OR_RETURN(simdjson::dom::array list, root_.array("added_tokens"));
  for (simdjson::dom::element element : list) {
    std::string place = fmt::format("added_tokens[{}]", added_.size());
    ASSIGN_OR_RETURN(JsonReader json, JsonReader::object(element, name_, std::move(place)));
    AddedToken token;
    ASSIGN_OR_RETURN(token.content, json.string("content"));
    ASSIGN_OR_RETURN(token.special, json.boolean("special", false));
    ASSIGN_OR_RETURN(token.normalized, json.boolean("normalized", !token.special));
    ASSIGN_OR_RETURN(token.lstrip, json.boolean("lstrip", false));
    ASSIGN_OR_RETURN(token.rstrip, json.boolean("rstrip", false));
    ASSIGN_OR_RETURN(token.single_word, json.boolean("single_word", false));
    int64_t id = -1;
    auto number = json.find("id");
    if (!number || number->get(id) || id < 0 || id >= kMaxVocab) {
      return json.wrong("id", fmt::format("must be a number from 0 to {}", kMaxVocab - 1));
    }
    token.id = static_cast<int32_t>(id);
    if (token.content.empty()) return json.wrong("content", "is empty");
    auto [known, is_new] = impl_->id_of_content.emplace(token.content, token.id);
    if (known->second != token.id) {
      return json.wrong("id", fmt::format("is {}, but '{}' is already {}", id, token.content, known->second));
    }
    bool taken = token.id < static_cast<int32_t>(impl_->bytes.size()) && !impl_->bytes[token.id].empty();
    if (is_new && taken) return json.wrong("id", fmt::format("{} already belongs to another token", id));
    set_token(token.id, token.content);
    impl_->special[token.id] = token.special;
    added_.push_back(std::move(token));
  }
  return Ok{};
}

// bos_token and its like: a string or an AddedToken object. A token of the vocabulary that is not listed as added is
// recognised in the text and special from here on, as in transformers.
Result<std::optional<int32_t>> Loader::config_token(const JsonReader& config, std::string_view key) {
  auto element = config.find(key);
  if (!element) return std::optional<int32_t>();
  std::string_view content;
  if (element->get(content)) {
    ASSIGN_OR_RETURN(JsonReader object, config.child(key));
    ASSIGN_OR_RETURN(content, object.string("content"));
  }
  auto found = impl_->id_of_content.find(content);
  if (found == impl_->id_of_content.end()) {
    return config.wrong(key, fmt::format("is '{}', which the tokenizer does not have", content));
  }
  int32_t id = found->second;
  if (std::none_of(added_.begin(), added_.end(), [&](const AddedToken& token) { return token.id == id; })) {
    impl_->special[id] = true;
    added_.push_back({.id = id, .content = std::string(content), .special = true});
  }
  return std::optional<int32_t>(id);
}

Status Loader::read_config(std::string_view text) {
  std::optional<bool> add_bos;
  if (!text.empty()) {
    size_t slash = name_.rfind('/');
    std::string file = std::string(name_.substr(0, slash == name_.npos ? 0 : slash + 1)) + "tokenizer_config.json";
    ASSIGN_OR_RETURN(json::Document document, json::Document::parse(text, file));
    ASSIGN_OR_RETURN(JsonReader config, JsonReader::object(document.root(), file, ""));
    ASSIGN_OR_RETURN(impl_->bos, config_token(config, "bos_token"));
    ASSIGN_OR_RETURN(impl_->eos, config_token(config, "eos_token"));
    if (config.find("add_bos_token")) {
      ASSIGN_OR_RETURN(add_bos, config.boolean("add_bos_token", false));
    }
    if (add_bos.value_or(false) && !impl_->bos) return config.wrong("add_bos_token", "is set without a bos_token");
  }
  if (add_bos.value_or(template_bos_.has_value())) {
    if (!impl_->bos) impl_->bos = impl_->id_of_content.find(*template_bos_)->second;
  } else {
    impl_->bos.reset();
  }
  return Ok{};
}

// What is normalized is looked for in normalized text, so its own content passes there too; special tokens come before
// others that are then the same, and what becomes nothing is never found.
void Loader::index_added_tokens() {
  auto middle =
      std::stable_partition(added_.begin(), added_.end(), [](const auto& token) { return !token.normalized; });
  std::vector<AddedToken> normalized(middle, added_.end());
  added_.erase(middle, added_.end());
  impl_->raw_tokens = AddedTokens(std::move(added_));
  for (AddedToken& token : normalized) token.content = impl_->normalizer.normalize(token.content);
  std::erase_if(normalized, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_partition(normalized.begin(), normalized.end(), [](const auto& token) { return token.special; });
  impl_->normalized_tokens = AddedTokens(std::move(normalized));
}

Result<std::unique_ptr<Tokenizer::Impl>> Loader::load(std::string_view config) {
  RETURN_IF_ERROR(check_components());
  RETURN_IF_ERROR(read_post_processor());
  ASSIGN_OR_RETURN(impl_->normalizer, parse_normalizer(root_));
  ASSIGN_OR_RETURN(impl_->pre_tokenizer, parse_pre_tokenizer(root_));
  RETURN_IF_ERROR(read_model());
  RETURN_IF_ERROR(read_added_tokens());
  if (template_bos_ && !impl_->id_of_content.contains(*template_bos_)) {
    return root_.wrong("post_processor", fmt::format("needs '{}', which is not in the vocabulary", *template_bos_));
  }
  RETURN_IF_ERROR(read_config(config));
  index_added_tokens();
  return std::move(impl_);
}

}  // namespace

std::optional<std::string> byte_level_decode(std::string_view spelled) {
  std::string bytes;
  for (size_t at = 0; at < spelled.size(); at += char_length(static_cast<unsigned char>(spelled[at]))) {
    uint32_t c = char_at(spelled, at);
    if (c >= kAlphabet.byte_of_char.size() || kAlphabet.byte_of_char[c] < 0) return std::nullopt;
    bytes += static_cast<char>(kAlphabet.byte_of_char[c]);
  }
  return bytes;
}

std::string byte_level_encode(unsigned char byte) {
  std::string spelled;
  append_char(kAlphabet.char_of_byte[byte], spelled);
  return spelled;
}

Result<std::unique_ptr<Tokenizer::Impl>> parse_tokenizer(std::string_view json, std::string_view config,
                                                         std::string_view name) {
  ASSIGN_OR_RETURN(json::Document document, json::Document::parse(json, name));
  ASSIGN_OR_RETURN(JsonReader root, JsonReader::object(document.root(), name, ""));
  return Loader(root, name).load(config);
}

}  // namespace tandem::text
