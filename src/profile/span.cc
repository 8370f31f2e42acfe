#include "profile/span.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::profile {

void Recorder::count(const char* name, const char* labels, std::initializer_list<int32_t> values) {
  if (!on()) return;
  Span span = make_span(*this, Track::kStep, name, now_ns(), 0);
  span.kind = SpanKind::kCounter;
  span.labels = labels;
  span.layer = -1;
  CHECK(values.size() <= span.dims.size());
  std::copy(values.begin(), values.end(), span.dims.begin());
  span.num_dims = uint8_t(values.size());
  push(span);
}

void Recorder::add_expert_rows(std::span<const int32_t> slot_begin) {
  if (!on() || slot_begin.size() < 2) return;
  const int32_t pairs = slot_begin.back() - slot_begin.front();
  if (pairs == 0) return;
  int32_t most = 0;
  for (size_t i = 1; i < slot_begin.size(); ++i) most = std::max(most, slot_begin[i] - slot_begin[i - 1]);
  expert_load_.pairs += pairs;
  expert_load_.num_layers += 1;
  expert_load_.balance_sum += double(pairs) / double(slot_begin.size() - 1) / double(most);
}

Span make_span(const Recorder& recorder, Track track, const char* name, int64_t begin_ns, int64_t end_ns) {
  Span span{};
  span.begin_ns = begin_ns;
  span.end_ns = end_ns;
  span.name = name;
  span.layer = recorder.layer();
  span.batch = recorder.batch();
  span.track = track;
  return span;
}

void ScopedSpan::begin(Recorder& recorder, Track track, const char* name) {
  recorder_ = &recorder;
  name_ = name;
  track_ = track;
  begin_ns_ = recorder.now_ns();
}

void ScopedSpan::end() { recorder_->push(make_span(*recorder_, track_, name_, begin_ns_, recorder_->now_ns())); }

void OpSpan::begin(Recorder& recorder, const char* name) {
  if (!recorder.records_ops()) return;
  recorder_ = &recorder;
  span_ = make_span(recorder, Track::kOp, name, recorder.now_ns(), 0);
}

void OpSpan::end() {
  span_.end_ns = recorder_->now_ns();
  recorder_->push(span_);
}

void OpSpan::work(std::initializer_list<int64_t> dims, double flops, double bytes) {
  for (const int64_t dim : dims) {
    if (span_.num_dims < span_.dims.size()) span_.dims[span_.num_dims++] = int32_t(std::min<int64_t>(dim, INT32_MAX));
  }
  span_.values = {flops, bytes};
  span_.num_values = 2;
}

}  // namespace tandem::profile
