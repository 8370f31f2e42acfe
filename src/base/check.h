// CHECK: a broken invariant of our own ends the process with file, line and expression. Always on.
// DCHECK: the same in debug builds only, for per-element loops. Input from outside is never CHECKed: it becomes a Result.
#pragma once

namespace tandem {

[[noreturn]] void check_failed(const char* file, int line, const char* expression);

}  // namespace tandem

#define CHECK(condition) \
  (static_cast<bool>(condition) ? static_cast<void>(0) : ::tandem::check_failed(__FILE__, __LINE__, #condition))

#ifdef NDEBUG
#define DCHECK(condition) static_cast<void>(0)
#else
#define DCHECK(condition) CHECK(condition)
#endif
