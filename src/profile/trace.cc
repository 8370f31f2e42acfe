#include "profile/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "profile/gzip.h"

namespace tandem::profile {
namespace {

constexpr size_t kPieceBytes = 64 << 10;

struct TrackName {
  Track track;
  uint8_t batch;
  const char* name;
};
// A thread's number in the trace is its place here, from 1.
constexpr TrackName kTracks[] = {
    {Track::kStep, 0, "step"},
    {Track::kScheduler, 0, "scheduler"},
    {Track::kLayer, 0, "layer"},
    {Track::kLayer, 1, "layer (second batch)"},
    {Track::kOp, 0, "op"},
    {Track::kExchange, 0, "exchange"},
    {Track::kExchange, 1, "exchange (second batch)"},
    {Track::kTransfer, 0, "kv transfer"},
};

bool has_track_per_batch(Track track) { return track == Track::kLayer || track == Track::kExchange; }

int tid_of(const Span& span) {
  const uint8_t batch = has_track_per_batch(span.track) ? span.batch : 0;
  int tid = 0;
  for (const TrackName& track : kTracks) {
    ++tid;
    if (track.track == span.track && track.batch == batch) return tid;
  }
  return tid;
}

const char* category_of(Track track) {
  switch (track) {
    case Track::kStep: return "step";
    case Track::kScheduler: return "scheduler";
    case Track::kLayer: return "layer";
    case Track::kOp: return "cpu_op";
    case Track::kExchange: return "exchange";
    case Track::kTransfer: return "kv_transfer";
  }
  return "";
}

class Formatter {
 public:
  Formatter(const TraceInfo& info, const std::function<void(std::string_view)>& out) : info_(info), out_(out) {}

  void head(uint64_t dropped);
  void event(const Span& span);
  void tail() {
    text_ += "\n]}\n";
    out_(text_);
    text_.clear();
  }

 private:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }
  // The beginning of an event up to its time; the caller adds the rest and closes it.
  void begin(const char* phase, const Span& span, int64_t at_ns);
  void time(const char* key, int64_t ns) { add(",\"{}\":{}.{:03}", key, ns / 1000, ns % 1000); }
  void arguments(const Span& span);
  void labelled(const Span& span);
  void close() {
    text_ += '}';
    if (text_.size() < kPieceBytes) return;
    out_(text_);
    text_.clear();
  }
  int64_t from_base(int64_t ns) const { return std::max<int64_t>(0, ns - info_.base_ns); }

  const TraceInfo& info_;
  const std::function<void(std::string_view)>& out_;
  std::string text_;
  bool first_argument_ = true;
};

void Formatter::head(uint64_t dropped) {
  text_ += "{\"schemaVersion\":1,\"displayTimeUnit\":\"ms\",\"deviceProperties\":[],\"baseTimeNanoseconds\":";
  add("{},\"metadata\":{{\"profile_id\":", info_.base_unix_ns);
  append_json_text(text_, info_.profile_id);
  text_ += ",\"role\":";
  append_json_text(text_, info_.role);
  text_ += ",\"stage\":";
  append_json_text(text_, info_.stage);
  add(",\"rank\":{},\"dropped_spans\":{}}},\n\"traceEvents\":[\n", info_.rank, dropped);
  add("{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{},\"tid\":0,\"args\":{{\"name\":", info_.rank);
  const std::string rank_name = info_.rank_name.empty() ? "" : " " + info_.rank_name;
  append_json_text(text_, fmt::format("{} rank {}{}", info_.role, info_.rank, rank_name));
  add("}}}},\n{{\"ph\":\"M\",\"name\":\"process_sort_index\",\"pid\":{0},\"tid\":0,\"args\":{{\"sort_index\":{0}}}}}",
      info_.rank);
  int tid = 0;
  for (const TrackName& track : kTracks) {
    ++tid;
    add(",\n{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":{},\"tid\":{},\"args\":{{\"name\":\"{}\"}}}}", info_.rank,
        tid, track.name);
    add(",\n{{\"ph\":\"M\",\"name\":\"thread_sort_index\",\"pid\":{},\"tid\":{},\"args\":{{\"sort_index\":{}}}}}",
        info_.rank, tid, tid);
  }
}

void Formatter::begin(const char* phase, const Span& span, int64_t at_ns) {
  const char* category =
      span.kind == SpanKind::kFlowBegin || span.kind == SpanKind::kFlowEnd ? "flow" : category_of(span.track);
  add(",\n{{\"ph\":\"{}\",\"cat\":\"{}\",\"name\":\"{}\",\"pid\":{},\"tid\":{}", phase, category, span.name, info_.rank,
      tid_of(span));
  time("ts", from_base(at_ns));
}

void Formatter::event(const Span& span) {
  switch (span.kind) {
    case SpanKind::kSpan: {
      begin("X", span, span.begin_ns);
      time("dur", std::max<int64_t>(0, from_base(span.end_ns) - from_base(span.begin_ns)));
      arguments(span);
      return close();
    }
    case SpanKind::kAsync:
      begin("b", span, span.begin_ns);
      add(",\"id\":\"{}\"", span.id);
      arguments(span);
      close();
      begin("e", span, span.end_ns);
      add(",\"id\":\"{}\"", span.id);
      return close();
    case SpanKind::kCounter:
      begin("C", span, span.begin_ns);
      arguments(span);
      return close();
    case SpanKind::kFlowBegin:
    case SpanKind::kFlowEnd:
      begin(span.kind == SpanKind::kFlowBegin ? "s" : "f", span, span.begin_ns);
      add(",\"id\":\"{}\"", span.id);
      if (span.kind == SpanKind::kFlowEnd) text_ += ",\"bp\":\"e\"";
      return close();
  }
}

void Formatter::arguments(const Span& span) {
  text_ += ",\"args\":{";
  first_argument_ = true;
  const auto comma = [&] {
    if (!first_argument_) text_ += ',';
    first_argument_ = false;
  };
  if (span.track == Track::kStep && span.kind == SpanKind::kSpan) {
    comma();
    add("\"step\":{}", span.id);
  }
  if (span.text != nullptr) {
    comma();
    text_ += "\"kind\":";
    append_json_text(text_, span.text);
  }
  if (span.layer >= 0) {
    comma();
    add("\"layer\":{},\"batch\":{}", span.layer, span.batch);
  }
  if (span.labels != nullptr) {
    labelled(span);
  } else if (span.num_values == 2) {
    if (info_.with_shapes) {
      comma();
      text_ += "\"Input Dims\":[[";
      for (uint8_t i = 0; i < span.num_dims; ++i) add("{}{}", i > 0 ? "," : "", span.dims[i]);
      text_ += "]]";
    }
    comma();
    add("\"flops\":{:.0f},\"bytes\":{:.0f}", span.values[0], span.values[1]);
  }
  text_ += '}';
}

// Whole numbers of dims, then values.
void Formatter::labelled(const Span& span) {
  std::string_view rest = span.labels;
  for (size_t i = 0; i < size_t(span.num_dims) + span.num_values && !rest.empty(); ++i) {
    const size_t end = std::min(rest.find(','), rest.size());
    if (!first_argument_) text_ += ',';
    first_argument_ = false;
    add("\"{}\":", rest.substr(0, end));
    if (i < span.num_dims) {
      add("{}", span.dims[i]);
    } else {
      add("{:.6g}", span.values[i - span.num_dims]);
    }
    rest.remove_prefix(std::min(rest.size(), end + 1));
  }
}

// The number behind e.g. "TP" in "DP0 TP3 EP3".
std::string_view number_of(std::string_view rank_name, std::string_view key) {
  size_t at = rank_name.find(key);
  if (at == std::string_view::npos) return "";
  at += key.size();
  size_t end = at;
  while (end < rank_name.size() && rank_name[end] >= '0' && rank_name[end] <= '9') ++end;
  return rank_name.substr(at, end - at);
}

}  // namespace

void append_json_text(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += byte < 0x7f ? c : '?';
    }
  }
  out += '"';
}

void format_trace(const TraceInfo& info, std::initializer_list<const SpanBuffer*> spans,
                  const std::function<void(std::string_view)>& out) {
  Formatter formatter(info, out);
  uint64_t dropped = 0;
  for (const SpanBuffer* buffer : spans) dropped += buffer->dropped();
  formatter.head(dropped);
  for (const SpanBuffer* buffer : spans) {
    for (size_t i = 0; i < buffer->size(); ++i) formatter.event((*buffer)[i]);
  }
  formatter.tail();
}

Status write_trace(const TraceInfo& info, std::initializer_list<const SpanBuffer*> spans, const std::string& path) {
  GzipFile file(path);
  format_trace(info, spans, [&](std::string_view piece) { file.write(piece); });
  return file.finish();
}

std::string trace_file_name(std::string_view prefix, std::string_view id, std::string_view rank_name,
                            std::string_view stage) {
  std::string name(prefix);
  if (!name.empty()) name += '-';
  name += id;
  const std::string_view tp = number_of(rank_name, "TP");
  name += fmt::format("-TP-{}", tp.empty() ? "0" : tp);
  for (const std::string_view key : {"DP", "PP", "EP"}) {
    const std::string_view number = number_of(rank_name, key);
    if (!number.empty()) name += fmt::format("-{}-{}", key, number);
  }
  if (!stage.empty()) name += fmt::format("-{}", stage);
  return name + ".trace.json.gz";
}

}  // namespace tandem::profile
