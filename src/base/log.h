// The process's log. Lines look as SGLang's do: "[2025-11-22 23:05:07 DP0 TP0] message"; the part after the time is the
// writer's scope, empty for the HTTP side. Any thread. Never log secrets or, by default, prompt text.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "base/result.h"

namespace tandem::log {

enum class Level { kDebug, kInfo, kWarning, kError };

// Where lines go and which are kept. Call before threads start. milliseconds: SGLANG_LOG_MS.
void configure(Level level, bool milliseconds);

// Lines go to DIR/NAME_YYYY-MM-DD.log, too; the directory is made. Call before threads start. Error: it cannot be
// written.
Status keep_daily_files(const std::string& directory, const std::string& name);

// scope: "" or "DP0 TP0 EP0" (no brackets, no surrounding spaces).
void write(Level level, std::string_view scope, std::string_view message);

template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kInfo, "", fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kWarning, "", fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kError, "", fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace tandem::log
