#include "base/log.h"

#include <spdlog/sinks/daily_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace tandem::log {
namespace {

// The log sink is one of the two mutable globals that the house allows.
spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    spdlog::logger made("tandem", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made.set_pattern("[%Y-%m-%d %H:%M:%S%v");
    made.flush_on(spdlog::level::info);
    return made;
  }();
  return instance;
}

spdlog::level::level_enum spdlog_level(Level level) {
  switch (level) {
    case Level::kDebug: return spdlog::level::debug;
    case Level::kInfo: return spdlog::level::info;
    case Level::kWarning: return spdlog::level::warn;
    case Level::kError: return spdlog::level::err;
  }
  return spdlog::level::info;
}

}  // namespace

void configure(Level level, bool milliseconds) {
  logger().set_level(spdlog_level(level));
  logger().set_pattern(milliseconds ? "[%Y-%m-%d %H:%M:%S.%e%v" : "[%Y-%m-%d %H:%M:%S%v");
}

Status keep_daily_files(const std::string& directory, const std::string& name) {
  try {
    auto sink = std::make_shared<spdlog::sinks::daily_file_sink_mt>(directory + "/" + name + ".log", 0, 0);
    sink->set_pattern("[%Y-%m-%d %H:%M:%S%v");
    logger().sinks().push_back(std::move(sink));
  } catch (const std::exception& error) {
    return invalid_input(fmt::format("log directory {}: {}", directory, error.what()));
  }
  return Ok{};
}

void write(Level level, std::string_view scope, std::string_view message) {
  const char* mark = level == Level::kWarning ? "WARNING: " : level == Level::kError ? "ERROR: " : "";
  logger().log(spdlog_level(level), "{}{}] {}{}", scope.empty() ? "" : " ", scope, mark, message);
}

}  // namespace tandem::log
