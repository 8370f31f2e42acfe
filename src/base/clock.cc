#include "base/clock.h"

namespace tandem {

TimePoint SystemClock::now() const { return std::chrono::steady_clock::now(); }

double SystemClock::unix_seconds() const {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace tandem
