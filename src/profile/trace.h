// Traces in Chrome's JSON form, which Perfetto and chrome://tracing open: a process per rank, a thread per track.
// Format: "Trace Event Format", the document of the Chromium project; names of keys as PyTorch's profiler has them
// ("Input Dims", baseTimeNanoseconds). Any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "profile/span.h"

namespace tandem::profile {

struct TraceInfo {
  std::string profile_id;
  int32_t rank = 0;
  std::string rank_name;  // "DP0 TP0 EP0"; shown with the role as the process's name
  std::string role;       // "decode"
  std::string stage;      // "", "EXTEND" or "DECODE"
  int64_t base_ns = 0;    // of the spans' clock: the trace's zero. Spans that begin earlier are cut there
  int64_t base_unix_ns = 0;
  bool with_shapes = true;
};

// Gives the JSON text piece by piece. spans: one buffer per thread.
void format_trace(const TraceInfo& info, std::initializer_list<const SpanBuffer*> spans,
                  const std::function<void(std::string_view)>& out);
// The same into a .json.gz file. Errors: GzipFile::finish()'s.
Status write_trace(const TraceInfo& info, std::initializer_list<const SpanBuffer*> spans, const std::string& path);

// "<prefix>-<id>-TP-0-DP-0-EP-0-DECODE.trace.json.gz". rank_name: "DP0 TP0 EP0", or "" for a server of one rank; prefix
// and stage may be empty.
std::string trace_file_name(std::string_view prefix, std::string_view id, std::string_view rank_name,
                            std::string_view stage);

void append_json_text(std::string& out, std::string_view text);  // with quotes; what is not UTF-8 becomes '?'

}  // namespace tandem::profile
