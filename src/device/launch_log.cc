#include <algorithm>

#include "base/check.h"
#include "device/gpu.h"

namespace tandem::device {

LaunchLog::LaunchLog(size_t max_launches) : names_(max_launches + 1) {
  for (size_t i = 0; i <= max_launches; ++i) {
    Result<Event> event = Event::create();
    CHECK(event.has_value());
    points_.push_back(std::move(*event));
  }
}

void LaunchLog::start(const Stream& stream) {
  used_ = 0;
  is_on_ = true;
  mark(stream, "");
}

void LaunchLog::mark(const Stream& stream, const char* name) {
  if (!is_on_ || used_ == points_.size()) return;
  points_[used_].record(stream);
  names_[used_++] = name;
}

std::vector<LaunchLog::Total> LaunchLog::stop(const Stream& stream) {
  stream.synchronize();
  is_on_ = false;
  std::vector<Total> totals;
  for (size_t i = 1; i < used_; ++i) {
    const auto same = [&](const Total& t) { return t.name == names_[i]; };
    auto found = std::find_if(totals.begin(), totals.end(), same);
    if (found == totals.end()) found = totals.insert(found, Total{names_[i], 0, 0});
    found->microseconds += double(points_[i].milliseconds_since(points_[i - 1])) * 1e3;
    found->launches += 1;
  }
  std::sort(totals.begin(), totals.end(),
            [](const Total& a, const Total& b) { return a.microseconds > b.microseconds; });
  return totals;
}

}  // namespace tandem::device
