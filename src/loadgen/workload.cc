#include "loadgen/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "base/check.h"
#include "loadgen/random.h"
#include "loadgen/sharegpt.h"

namespace tandem::loadgen {
namespace {

enum Stream : uint64_t { kLengths, kContent, kOrder, kArrivals };

constexpr std::string_view kWords[] = {
    "the",   "of",    "and",   "to",     "in",     "is",    "that",   "for",   "it",     "as",     "was",   "with",
    "on",    "by",    "he",    "at",     "are",    "this",  "have",   "from",  "or",     "had",    "an",    "they",
    "which", "one",   "you",   "were",   "all",    "her",   "there",  "would", "their",  "we",     "him",   "been",
    "has",   "when",  "who",   "will",   "no",     "more",  "if",     "out",   "so",     "up",     "said",  "what",
    "its",   "about", "than",  "into",   "them",   "can",   "only",   "other", "time",   "new",    "some",  "could",
    "these", "two",   "may",   "first",  "then",   "do",    "any",    "like",  "my",     "now",    "over",  "such",
    "our",   "man",   "me",    "even",   "most",   "made",  "after",  "also",  "well",   "many",   "must",  "before",
    "back",  "see",   "years", "way",    "much",   "where", "your",   "down",  "should", "people", "long",  "work",
    "water", "house", "light", "river",  "stone",  "road",  "winter", "field", "garden", "market", "night", "morning",
    "ship",  "fire",  "horse", "letter", "window", "door",  "table",  "green", "white",  "black",  "small", "great",
};

// Exactly `count` ids of a sentence of random words, without a begin-of-sentence token.
std::vector<int32_t> word_ids(const text::Tokenizer& tokenizer, Rng& rng, size_t count) {
  std::vector<int32_t> ids;
  std::string text;
  while (ids.size() < count) {
    const size_t wanted = (count - ids.size()) + 4;
    for (size_t i = 0; i < wanted; ++i) {
      if (!text.empty()) text += ' ';
      text += kWords[rng.below(std::size(kWords))];
    }
    ids = tokenizer.encode(text, false);
  }
  ids.resize(count);
  return ids;
}

struct Lengths {
  int32_t input = 0, output = 0;
};

std::vector<Lengths> draw_lengths(const BenchConfig& c) {
  Rng rng(c.seed, kLengths);
  auto low = [&](int32_t len) { return int32_t(double(len) * c.random_range_ratio); };
  std::vector<Lengths> lengths(size_t(c.num_prompts));
  for (Lengths& l : lengths) {
    l.input = int32_t(rng.between(std::max(low(c.random_input_len), 1), c.random_input_len));
    l.output = int32_t(rng.between(low(c.random_output_len), c.random_output_len));
  }
  return lengths;
}

// An item of the random dataset. body: ids of the content without begin-of-sentence, at least one.
WorkItem random_item(const text::Tokenizer& tokenizer, std::span<const int32_t> body, Lengths lengths, bool send_ids) {
  WorkItem item{.text = {}, .ids = {}, .input_len = lengths.input, .output_len = lengths.output};
  // The server puts the begin-of-sentence token in front of text; among ids we do.
  const std::optional<int32_t> bos = lengths.input > 1 ? tokenizer.bos_id() : std::nullopt;
  const size_t count = size_t(lengths.input) - (bos ? 1 : 0);
  if (send_ids && bos) item.ids.push_back(*bos);
  for (size_t i = 0; i < count; ++i) item.ids.push_back(body[i % body.size()]);
  if (!send_ids) {
    item.text = tokenizer.decode(item.ids, false);
    item.ids.clear();
  }
  return item;
}

Result<Workload> make_random(const BenchConfig& c, const text::Tokenizer& tokenizer) {
  Workload workload;
  const std::vector<Lengths> lengths = draw_lengths(c);
  workload.items.reserve(lengths.size());
  if (c.dataset_path.empty()) {
    workload.notes.push_back("--dataset-path is not given: prompts are random English words, not ShareGPT text");
    for (size_t i = 0; i < lengths.size(); ++i) {
      Rng rng(c.seed, (uint64_t(i) << 8) + kContent);
      const std::vector<int32_t> body = word_ids(tokenizer, rng, size_t(lengths[i].input));
      workload.items.push_back(random_item(tokenizer, body, lengths[i], c.tokenize_prompt));
    }
    return workload;
  }
  ASSIGN_OR_RETURN(std::vector<Conversation> conversations, load_sharegpt(c.dataset_path));
  Rng(c.seed, kOrder).shuffle(conversations);
  for (const Conversation& conversation : conversations) {
    if (workload.items.size() == lengths.size()) break;
    const std::vector<int32_t> body = tokenizer.encode(conversation.prompt, false);
    if (body.empty()) continue;
    workload.items.push_back(random_item(tokenizer, body, lengths[workload.items.size()], c.tokenize_prompt));
  }
  return workload;
}

Result<Workload> make_random_ids(const BenchConfig& c, const text::Tokenizer& tokenizer) {
  Workload workload;
  Rng rng(c.seed, kContent);
  const uint64_t vocab = uint64_t(tokenizer.vocab_size());
  const std::vector<Lengths> lengths = draw_lengths(c);
  for (size_t i = 0; i < lengths.size(); ++i) {
    const uint64_t offset = rng.below(vocab);
    WorkItem item{.text = {}, .ids = {}, .input_len = lengths[i].input, .output_len = lengths[i].output};
    for (size_t j = 0; j < size_t(lengths[i].input); ++j) item.ids.push_back(int32_t((offset + i + j) % vocab));
    if (!c.tokenize_prompt) {
      item.text = tokenizer.decode(item.ids, false);
      item.ids.clear();
    }
    workload.items.push_back(std::move(item));
  }
  return workload;
}

Result<Workload> make_shared_prefix(const BenchConfig& c, const text::Tokenizer& tokenizer) {
  Rng rng(c.seed, kContent);
  std::vector<int32_t> ordinary;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.is_special(id) && !tokenizer.token_bytes(id).empty()) ordinary.push_back(id);
  }
  if (ordinary.empty()) return invalid_input("the tokenizer has no ordinary tokens to make prompts of");
  auto random_text = [&](int32_t count) {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < count; ++i) ids.push_back(ordinary[rng.below(ordinary.size())]);
    return tokenizer.decode(ids, true);
  };
  Workload workload;
  for (int32_t group = 0; group < c.gsp_num_groups; ++group) {
    const std::string system = random_text(c.gsp_system_prompt_len);
    for (int32_t i = 0; i < c.gsp_prompts_per_group; ++i) {
      WorkItem item;
      item.text = system + "\n\n" + random_text(c.gsp_question_len);
      item.input_len = int32_t(tokenizer.encode(item.text, true).size());
      item.output_len = c.gsp_output_len;
      workload.items.push_back(std::move(item));
    }
  }
  Rng(c.seed, kOrder).shuffle(workload.items);
  if (c.num_prompts != int32_t(workload.items.size())) {
    workload.notes.push_back(
        fmt::format("generated-shared-prefix sends groups x prompts per group = {} requests; "
                    "--num-prompts is not used",
                    workload.items.size()));
  }
  return workload;
}

std::string with_suffix(std::string prompt, const std::string& suffix) {
  constexpr std::string_view kAssistant = "Assistant:";  // a template's last words stay last
  if (suffix.empty()) return prompt;
  if (!prompt.ends_with(kAssistant)) return prompt + suffix;
  prompt.resize(prompt.size() - kAssistant.size());
  return prompt + suffix + std::string(kAssistant);
}

Result<std::string> through_template(const text::ChatTemplate& chat_template, const text::Tokenizer& tokenizer,
                                     const std::string& prompt) {
  const text::ChatMessage message{"user", prompt};
  ASSIGN_OR_RETURN(std::string rendered, chat_template.render({&message, 1}, true, false));
  if (!tokenizer.bos_id()) return rendered;
  const std::string bos = tokenizer.decode({{*tokenizer.bos_id()}}, false);  // the server adds it again
  if (!bos.empty() && rendered.starts_with(bos)) rendered.erase(0, bos.size());
  return rendered;
}

Result<Workload> make_sharegpt(const BenchConfig& c, const text::Tokenizer& tokenizer,
                               const text::ChatTemplate* chat_template) {
  CHECK(!c.apply_chat_template || chat_template);
  ASSIGN_OR_RETURN(std::vector<Conversation> conversations, load_sharegpt(c.dataset_path));
  Rng(c.seed, kOrder).shuffle(conversations);
  Workload workload;
  for (Conversation& conversation : conversations) {
    if (workload.items.size() == size_t(c.num_prompts)) break;
    WorkItem item;
    item.text = std::move(conversation.prompt);
    if (c.apply_chat_template) {
      ASSIGN_OR_RETURN(item.text, through_template(*chat_template, tokenizer, item.text));
    }
    item.text = with_suffix(std::move(item.text), c.prompt_suffix);
    item.input_len = int32_t(tokenizer.encode(item.text, true).size());
    item.output_len =
        c.sharegpt_output_len ? *c.sharegpt_output_len : int32_t(tokenizer.encode(conversation.answer, true).size());
    if (item.input_len < 2 || item.output_len < 2) continue;
    if (c.sharegpt_context_len && int64_t(item.input_len) + item.output_len > *c.sharegpt_context_len) continue;
    workload.items.push_back(std::move(item));
  }
  return workload;
}

}  // namespace

Result<Workload> make_workload(const BenchConfig& config, const text::Tokenizer& tokenizer,
                               const text::ChatTemplate* chat_template) {
  auto made = [&]() -> Result<Workload> {
    if (config.dataset_name == "random") return make_random(config, tokenizer);
    if (config.dataset_name == "random-ids") return make_random_ids(config, tokenizer);
    if (config.dataset_name == "generated-shared-prefix") return make_shared_prefix(config, tokenizer);
    return make_sharegpt(config, tokenizer, chat_template);
  }();
  if (!made) return made;
  if (made->items.empty()) return invalid_input(fmt::format("{}: no usable prompt", config.dataset_path));
  if (!config.dataset_path.empty() && made->items.size() < size_t(config.num_prompts)) {
    made->notes.push_back(fmt::format("{} has {} usable prompts: fewer than --num-prompts {}", config.dataset_path,
                                      made->items.size(), config.num_prompts));
  }
  return made;
}

std::vector<Duration> arrival_times(size_t count, double rate, uint64_t seed) {
  CHECK(rate > 0);
  std::vector<Duration> times(count, Duration::zero());
  if (std::isinf(rate)) return times;
  Rng rng(seed, kArrivals);
  double at = 0;
  // An offset of centuries is as good as never and still fits a Duration.
  constexpr double kLatest = 1e9;
  for (size_t i = 1; i < count; ++i) {
    at = std::min(at + rng.exponential(1 / rate), kLatest);
    times[i] = from_seconds(at);
  }
  return times;
}

}  // namespace tandem::loadgen
