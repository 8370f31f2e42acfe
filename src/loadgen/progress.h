// ProgressLine: how far a run is, as a bar on a terminal and as a line now and then elsewhere. Formatting only.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace tandem::loadgen {

class ProgressLine {
 public:
  // write: takes the bytes to show, line ends included; empty: shows nothing.
  ProgressLine(std::function<void(std::string_view)> write, bool terminal, size_t total, TimePoint start);
  // Shows the state if it is time to: a bar each call that changes something; plain lines each tenth of the total, but
  // no more often than once a second, and at least once in 30 seconds.
  void update(size_t done, size_t failed, TimePoint now);
  void finish(size_t done, size_t failed, TimePoint now);

 private:
  std::string describe(size_t done, size_t failed, TimePoint now) const;
  std::function<void(std::string_view)> write_;
  bool terminal_;
  size_t total_;
  TimePoint start_;
  TimePoint shown_at_;
  size_t shown_done_ = 0;
  std::string last_bar_;
};

}  // namespace tandem::loadgen
