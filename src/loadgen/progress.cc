#include "loadgen/progress.h"

#include <fmt/format.h>

#include <algorithm>

namespace tandem::loadgen {
namespace {

std::string minutes_seconds(double s) {
  const auto total = int64_t(s);
  if (total >= 3600) return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{:02}:{:02}", total / 60, total % 60);
}

}  // namespace

ProgressLine::ProgressLine(std::function<void(std::string_view)> write, bool terminal, size_t total, TimePoint start)
    : write_(std::move(write)),
      terminal_(terminal),
      total_(std::max<size_t>(total, 1)),
      start_(start),
      shown_at_(start) {}

std::string ProgressLine::describe(size_t done, size_t failed, TimePoint now) const {
  const double elapsed = seconds(now - start_);
  const double rate = elapsed > 0 ? double(done) / elapsed : 0;
  const std::string left = rate > 0 ? minutes_seconds(double(total_ - std::min(done, total_)) / rate) : "?";
  std::string text = fmt::format("{}/{} [{}<{}, {:.2f} req/s", done, total_, minutes_seconds(elapsed), left, rate);
  if (failed) text += fmt::format(", {} failed", failed);
  return text + "]";
}

void ProgressLine::update(size_t done, size_t failed, TimePoint now) {
  if (!write_) return;
  if (terminal_) {
    constexpr size_t kWidth = 30;
    const size_t filled = std::min(done, total_) * kWidth / total_;
    std::string bar = fmt::format("\r{:3}%|{:-<{}}| {}", std::min(done, total_) * 100 / total_,
                                  std::string(filled, '#'), kWidth, describe(done, failed, now));
    if (bar == last_bar_) return;
    const size_t before = last_bar_.size();
    last_bar_ = bar;
    if (bar.size() < before) bar.append(before - bar.size(), ' ');
    write_(bar);
    return;
  }
  const bool step = done * 10 / total_ > shown_done_ * 10 / total_ && now - shown_at_ >= std::chrono::seconds(1);
  if (!step && now - shown_at_ < std::chrono::seconds(30)) return;
  shown_at_ = now;
  shown_done_ = done;
  write_(describe(done, failed, now) + "\n");
}

void ProgressLine::finish(size_t done, size_t failed, TimePoint now) {
  if (!write_) return;
  if (terminal_) update(done, failed, now);
  write_(terminal_ ? "\n" : describe(done, failed, now) + "\n");
}

}  // namespace tandem::loadgen
