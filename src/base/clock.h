// Time is passed in: nothing below `app` reads a clock of its own, so that the simulation owns time.
#pragma once

#include <chrono>
#include <cstdint>

namespace tandem {

using Duration = std::chrono::nanoseconds;
// Monotonic. The zero point has no meaning outside the process.
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint now() const = 0;
  // Seconds since 1970, for log stamps and API fields only.
  virtual double unix_seconds() const = 0;
};

// The machine's clocks. Any thread.
class SystemClock final : public Clock {
 public:
  TimePoint now() const override;
  double unix_seconds() const override;
};

// Stands still until told otherwise. For tests and the simulation; one thread.
class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return now_; }
  double unix_seconds() const override { return std::chrono::duration<double>(now_.time_since_epoch()).count(); }
  void advance(Duration by) { now_ += by; }

 private:
  TimePoint now_{};
};

inline double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }
inline Duration from_seconds(double s) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(s));
}

}  // namespace tandem
