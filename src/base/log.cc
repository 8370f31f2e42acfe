#include "base/log.h"

#include <spdlog/sinks/daily_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>

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

bool is_control(char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }

// Texts of clients and peers get into messages: none of them may begin a line of its own, or speak to a terminal.
std::string one_line(std::string_view message) {
  std::string out;
  for (const char c : message) {
    if (c == '\n') {
      out += "\\n";
    } else if (is_control(c)) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out;
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
  const bool is_clean = std::none_of(message.begin(), message.end(), is_control);
  const std::string cleaned = is_clean ? std::string() : one_line(message);
  logger().log(spdlog_level(level), "{}{}] {}{}", scope.empty() ? "" : " ", scope, mark, is_clean ? message : cleaned);
}

}  // namespace tandem::log
