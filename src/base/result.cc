#include "base/result.h"

#include <cstdio>
#include <cstdlib>

namespace tandem {

const char* to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidInput: return "invalid input";
    case ErrorCode::kNotFound: return "not found";
    case ErrorCode::kExhausted: return "exhausted";
    case ErrorCode::kTimeout: return "timeout";
    case ErrorCode::kCancelled: return "cancelled";
    case ErrorCode::kPeerLost: return "peer lost";
    case ErrorCode::kCorrupt: return "corrupt";
  }
  return "unknown";
}

void check_failed(const char* file, int line, const char* expression) {
  std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", file, line, expression);
  std::fflush(stderr);
  std::abort();
}

}  // namespace tandem
