#include "text/pre_tokenizer.h"

#include "text/utf8.h"

namespace tandem::text {

// Takes the alternating matches and gaps of one piece in order and passes on what the behaviour makes of them.
class PreTokenizer::Emitter {
 public:
  Emitter(const PreTokenizer& owner, size_t step, std::string_view piece, Scratch& scratch, WordSink& sink)
      : owner_(owner), step_(step), piece_(piece), scratch_(scratch), sink_(sink) {}

  void add(size_t begin, size_t end, bool is_match) {
    const Step& step = owner_.steps_[step_];
    if (begin == end) return;
    if (step.invert) is_match = !is_match;
    switch (step.behavior) {
      case Behavior::kIsolated: pass(begin, end); return;
      case Behavior::kRemoved:
        if (!is_match) pass(begin, end);
        return;
      case Behavior::kContiguous: extend_if(held_ && held_match_ == is_match, begin, end, is_match); return;
      case Behavior::kMergedWithPrevious: extend_if(held_ && is_match && !held_match_, begin, end, is_match); return;
      case Behavior::kMergedWithNext: extend_if(held_ && !is_match && held_match_, begin, end, is_match); return;
    }
  }

  void finish() {
    if (held_) pass(held_begin_, held_end_);
    held_ = false;
  }

 private:
  void extend_if(bool extend, size_t begin, size_t end, bool is_match) {
    if (!extend) {
      finish();
      held_begin_ = begin;
    }
    held_ = true, held_end_ = end, held_match_ = is_match;
  }
  void pass(size_t begin, size_t end) { owner_.run(step_ + 1, piece_.substr(begin, end - begin), scratch_, sink_); }

  const PreTokenizer& owner_;
  size_t step_;
  std::string_view piece_;
  Scratch& scratch_;
  WordSink& sink_;
  bool held_ = false, held_match_ = false;
  size_t held_begin_ = 0, held_end_ = 0;
};

PreTokenizer::Scratch PreTokenizer::make_scratch() const {
  Scratch scratch;
  for (const Step& step : steps_) {
    scratch.emplace_back();
    if (step.regex) scratch.back().emplace(*step.regex);
  }
  return scratch;
}

void PreTokenizer::run(size_t step, std::string_view piece, Scratch& scratch, WordSink& sink) const {
  if (piece.empty()) return;
  if (step == steps_.size()) {
    sink.word(piece);
  } else if (steps_[step].add_prefix_space && piece[0] != ' ') {
    std::string with_space = " ";
    with_space += piece;
    cut(step, with_space, scratch, sink);
  } else {
    cut(step, piece, scratch, sink);
  }
}

void PreTokenizer::cut(size_t step, std::string_view piece, Scratch& scratch, WordSink& sink) const {
  if (!steps_[step].regex) return run(step + 1, piece, scratch, sink);
  Emitter emitter(*this, step, piece, scratch, sink);
  size_t done = 0, from = 0;
  while (from <= piece.size()) {
    std::optional<Match> match = scratch[step]->search(piece, from);
    if (!match) break;
    emitter.add(done, match->begin, false);
    emitter.add(match->begin, match->end, true);
    done = from = match->end;
    // Behind an empty match the search goes on one character later.
    if (match->begin == match->end)
      from += from < piece.size() ? char_length(static_cast<unsigned char>(piece[from])) : 1;
  }
  emitter.add(done, piece.size(), false);
  emitter.finish();
}

}  // namespace tandem::text
