#include "text/tokenizer.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <filesystem>

#include "text/files.h"
#include "text/tokenizer_impl.h"
#include "text/utf8.h"

namespace tandem::text {
namespace {

// One call of encode: takes words and appends their tokens. A word seen before in this text is copied from the output.
class Encoder final : public WordSink {
 public:
  Encoder(const Tokenizer::Impl& impl, std::string_view text, std::vector<int32_t>& out)
      : impl_(impl), text_(text), piece_(text), out_(out), scratch_(impl.pre_tokenizer.make_scratch()) {
    seen_.resize(std::bit_ceil(std::clamp<size_t>(text.size() / 8, 1, 8192)));
  }

  void word(std::string_view bytes) override {
    bool cached = bytes.size() > 1 && inside(bytes);
    Seen* seen = cached ? &seen_[std::hash<std::string_view>{}(bytes) & (seen_.size() - 1)] : nullptr;
    if (seen && seen->word == bytes) {
      size_t size = out_.size();
      out_.resize(size + seen->count);
      std::copy_n(out_.begin() + seen->begin, seen->count, out_.begin() + size);
      return;
    }
    size_t begin = out_.size();
    encode_word(bytes);
    if (seen) *seen = {bytes, begin, out_.size() - begin};
  }

  void run() {
    find_tokens(impl_.raw_tokens, text_, [this](std::string_view gap) { normalized(gap); });
  }

 private:
  struct Seen {
    std::string_view word;
    size_t begin = 0, count = 0;  // of its tokens in out_
  };

  // A word with a space put before it does not live as long as this object.
  bool inside(std::string_view bytes) const {
    return std::less_equal<>{}(piece_.data(), bytes.data()) &&
           std::less<>{}(bytes.data(), piece_.data() + piece_.size());
  }
  void encode_word(std::string_view bytes) {
    if (impl_.ignore_merges) {
      auto found = impl_.id_of_word.find(bytes);
      if (found != impl_.id_of_word.end()) return out_.push_back(found->second);
    }
    impl_.bpe.encode(bytes, bpe_scratch_, out_);
  }
  void normalized(std::string_view text) {
    if (text.empty()) return;
    if (!impl_.normalizer.empty()) piece_ = text = kept_.emplace_back(impl_.normalizer.normalize(text));
    find_tokens(impl_.normalized_tokens, text,
                [this](std::string_view gap) { impl_.pre_tokenizer.split(gap, scratch_, *this); });
  }
  template <class Gap>
  void find_tokens(const AddedTokens& tokens, std::string_view text, const Gap& gap) {
    size_t done = 0;
    while (auto match = tokens.find(text, done)) {
      gap(text.substr(done, match->begin - done));
      out_.push_back(match->id);
      done = match->end;
    }
    gap(text.substr(done));
  }

  const Tokenizer::Impl& impl_;
  std::string_view text_;
  std::string_view piece_;        // what words are views of: the text, or the last of kept_
  std::deque<std::string> kept_;  // normalized texts, for the words seen
  std::vector<int32_t>& out_;
  PreTokenizer::Scratch scratch_;
  Bpe::Scratch bpe_scratch_;
  std::vector<Seen> seen_;
};

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::shared_ptr<const Tokenizer>> Tokenizer::parse(std::string_view json, std::string_view config,
                                                          std::string_view name) {
  ASSIGN_OR_RETURN(auto impl, parse_tokenizer(json, config, name));
  // Shared by all threads that tokenize; nobody owns it alone.
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const std::string& path) {
  ASSIGN_OR_RETURN(std::string json, read_file(path));
  auto config_path = std::filesystem::path(path).replace_filename("tokenizer_config.json");
  std::string config;
  std::error_code ignored;
  if (std::filesystem::exists(config_path, ignored)) {
    ASSIGN_OR_RETURN(config, read_file(config_path));
  }
  return parse(json, config, path);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_bos) const {
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = to_valid_utf8(text);
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 2);
  if (add_bos && impl_->bos) ids.push_back(*impl_->bos);
  if (!text.empty()) Encoder(*impl_, text, ids).run();
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (!(skip_special_tokens && is_special(id))) bytes += token_bytes(id);
  }
  return is_valid_utf8(bytes) ? bytes : to_valid_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return impl_->bytes[id];
}

bool Tokenizer::is_special(int32_t id) const { return id >= 0 && id < vocab_size() && impl_->special[id]; }

std::optional<int32_t> Tokenizer::token_id(std::string_view content) const {
  auto found = impl_->id_of_content.find(content);
  if (found == impl_->id_of_content.end()) return std::nullopt;
  return found->second;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->bytes.size()); }
std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos; }

}  // namespace tandem::text
