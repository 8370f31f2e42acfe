#include "profile/trace_reader.h"

#include <fmt/format.h>

#include "base/json.h"
#include "profile/gzip.h"
#include "profile/trace.h"

namespace tandem::profile {
namespace {

using Element = simdjson::dom::element;
using Object = simdjson::dom::object;
using Array = simdjson::dom::array;

constexpr size_t kMaxBytes = size_t(2) << 30;

double number_of(Element value) {
  double number = 0;
  if (value.get(number) != simdjson::SUCCESS) return 0;
  return number;
}

// Processes and threads may be named by texts ("stream 7"); those all become 0.
int64_t integer_of(Element value) {
  int64_t number = 0;
  if (value.get(number) == simdjson::SUCCESS) return number;
  return 0;
}

std::string text_of(Element value) {
  std::string_view text;
  if (value.get(text) == simdjson::SUCCESS) return std::string(text);
  return simdjson::minify(value);
}

void append_dims(Element value, std::vector<int64_t>& dims) {
  Array list;
  if (value.get(list) != simdjson::SUCCESS) return;
  for (const Element item : list) {
    int64_t number = 0;
    if (item.get(number) == simdjson::SUCCESS) {
      dims.push_back(number);
    } else {
      append_dims(item, dims);
    }
  }
}

void read_arguments(Element value, TraceEvent& event) {
  Object arguments;
  if (value.get(arguments) != simdjson::SUCCESS) return;
  for (const auto& [key, argument] : arguments) {
    if (key == "Input Dims") {
      append_dims(argument, event.dims);
    } else if (argument.is_number()) {
      event.numbers.emplace_back(key, number_of(argument));
    } else if (argument.is_string()) {
      event.texts.emplace_back(key, text_of(argument));
    }
  }
}

TraceEvent read_event(Object fields) {
  TraceEvent event;
  for (const auto& [key, value] : fields) {
    if (key == "ph") {
      const std::string phase = text_of(value);
      event.phase = phase.empty() ? '\0' : phase[0];
    } else if (key == "name") {
      event.name = text_of(value);
    } else if (key == "cat") {
      event.category = text_of(value);
    } else if (key == "id") {
      event.id = text_of(value);
    } else if (key == "pid") {
      event.pid = integer_of(value);
    } else if (key == "tid") {
      event.tid = integer_of(value);
    } else if (key == "ts") {
      event.begin_us = number_of(value);
    } else if (key == "dur") {
      event.duration_us = number_of(value);
    } else if (key == "args") {
      read_arguments(value, event);
    }
  }
  return event;
}

// The events of a document: a list, or an object that has one.
Result<Array> events_of(Element root, std::string_view name) {
  Array events;
  if (root.get(events) == simdjson::SUCCESS) return events;
  if (root.is_object() && root["traceEvents"].get(events) == simdjson::SUCCESS) return events;
  return invalid_input(fmt::format("{}: no trace: it has no list traceEvents", name));
}

int64_t base_of(Element root) {
  int64_t base = 0;
  if (root.is_object() && root["baseTimeNanoseconds"].get(base) == simdjson::SUCCESS) return base;
  return 0;
}

// One event of a merged file, its process, time and ids moved away from those of the other files.
class Mover {
 public:
  Mover(size_t file, double shift_us) : file_(file), shift_us_(shift_us) {}

  std::string moved(Object fields) const {
    std::string out = "{";
    for (const auto& [key, value] : fields) {
      if (out.size() > 1) out += ',';
      append_json_text(out, key);
      out += ':';
      append(out, key, value);
    }
    return out + "}";
  }

 private:
  void append(std::string& out, std::string_view key, Element value) const {
    int64_t number = 0;
    if (key == "pid" && value.get(number) == simdjson::SUCCESS) {
      out += fmt::format("{}", int64_t(file_) * kProcessesPerFile + number % kProcessesPerFile);
    } else if (key == "pid" || key == "id") {
      append_json_text(out, fmt::format("{}:{}", file_, text_of(value)));
    } else if (key == "ts" && value.is_number()) {
      out += fmt::format("{:.3f}", number_of(value) + shift_us_);
    } else {
      out += simdjson::minify(value);
    }
  }

  static constexpr int64_t kProcessesPerFile = 100000;
  const size_t file_;
  const double shift_us_;
};

Status merge_one(size_t index, const std::string& path, int64_t& zero_unix_ns, bool& first, GzipFile& out) {
  ASSIGN_OR_RETURN(const std::string text, read_maybe_gzip(path, kMaxBytes));
  ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(text, path));
  ASSIGN_OR_RETURN(const Array events, events_of(document.root(), path));
  const int64_t base = base_of(document.root());
  if (index == 0) {
    zero_unix_ns = base;
    out.write(
        fmt::format("{{\"schemaVersion\":1,\"displayTimeUnit\":\"ms\",\"deviceProperties\":[],"
                    "\"baseTimeNanoseconds\":{},\"traceEvents\":[\n",
                    base));
  }
  const Mover mover(index, base != 0 && zero_unix_ns != 0 ? double(base - zero_unix_ns) / 1000 : 0);
  for (const Element event : events) {
    Object fields;
    if (event.get(fields) != simdjson::SUCCESS) continue;
    out.write((first ? "" : ",\n") + mover.moved(fields));
    first = false;
  }
  return Ok{};
}

}  // namespace

double TraceEvent::number(std::string_view key, double fallback) const {
  for (const auto& [name, value] : numbers) {
    if (name == key) return value;
  }
  return fallback;
}

std::string_view TraceEvent::text(std::string_view key) const {
  for (const auto& [name, value] : texts) {
    if (name == key) return value;
  }
  return "";
}

Result<Trace> parse_trace(std::string_view json, std::string_view name) {
  ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(json, name));
  ASSIGN_OR_RETURN(const Array events, events_of(document.root(), name));
  Trace trace;
  trace.base_unix_ns = base_of(document.root());
  int64_t dropped = 0;
  if (document.root().is_object() && document.root()["metadata"]["dropped_spans"].get(dropped) == simdjson::SUCCESS) {
    trace.dropped_spans = dropped;
  }
  for (const Element event : events) {
    Object fields;
    if (event.get(fields) == simdjson::SUCCESS) trace.events.push_back(read_event(fields));
  }
  return trace;
}

Result<Trace> read_trace(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, read_maybe_gzip(path, kMaxBytes));
  return parse_trace(text, path);
}

Status merge_traces(const std::vector<std::string>& paths, const std::string& output) {
  CHECK(!paths.empty());
  GzipFile out(output);
  int64_t zero_unix_ns = 0;
  bool first = true;
  for (size_t i = 0; i < paths.size(); ++i) RETURN_IF_ERROR(merge_one(i, paths[i], zero_unix_ns, first, out));
  out.write("\n]}\n");
  return out.finish();
}

}  // namespace tandem::profile
