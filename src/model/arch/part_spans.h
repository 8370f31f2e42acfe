// PartSpans: what a part of a step (the whole batch, or one half of it) shows of its way through the layers: each layer
// from its attention to the sum of its experts, rows and results under way, and the waits for them. Owner: the engine
// thread.
#pragma once

#include "profile/span.h"

namespace tandem::model {

class PartSpans {
 public:
  PartSpans() = default;
  PartSpans(profile::Recorder* recorder, int32_t batch) : recorder_(recorder), batch_(batch) {}

  // Operators from here on belong to the part's layer; -1: to none.
  void enter(int32_t layer) {
    if (on()) recorder_->enter(layer, batch_);
  }
  void begin_layer(int32_t layer) {
    if (!on()) return;
    enter(layer);
    layer_begin_ns_ = recorder_->now_ns();
  }
  void end_layer() {
    if (on()) span(profile::Track::kLayer, "layer", layer_begin_ns_, recorder_->now_ns());
  }

  // Rows left for their experts; step, layer and batch name the arrow that ends where results are added up.
  void dispatched(uint64_t step, int32_t layer) {
    if (!on()) return;
    posted_ns_ = recorder_->now_ns();
    flow_id_ = (step << 16 | uint64_t(uint16_t(layer))) << 1 | uint64_t(batch_);
    flow(profile::SpanKind::kFlowBegin);
  }
  void answered() {  // this rank's results left
    if (!on()) return;
    posted_ns_ = recorder_->now_ns();
    flow(profile::SpanKind::kFlowEnd);
  }
  void begin_wait() {
    if (on()) wait_ns_ = recorder_->now_ns();
  }
  void rows_came(std::span<const int32_t> slot_begin) {
    if (!on()) return;
    end_wait("dispatch wait", "dispatch");
    recorder_->add_expert_rows(slot_begin);
  }
  void results_came() {
    if (on()) end_wait("combine wait", "combine");
  }

 private:
  bool on() const { return recorder_ != nullptr && recorder_->on(); }
  void span(profile::Track track, const char* name, int64_t begin_ns, int64_t end_ns) {
    recorder_->push(make_span(*recorder_, track, name, begin_ns, end_ns));
  }
  void end_wait(const char* wait, const char* whole) {
    const int64_t now_ns = recorder_->now_ns();
    span(profile::Track::kExchange, wait, wait_ns_, now_ns);
    span(profile::Track::kExchange, whole, posted_ns_, now_ns);
  }
  void flow(profile::SpanKind kind) {
    profile::Span arrow = make_span(*recorder_, profile::Track::kExchange, "exchange", posted_ns_, posted_ns_);
    arrow.kind = kind;
    arrow.id = flow_id_;
    recorder_->push(arrow);
  }

  profile::Recorder* recorder_ = nullptr;  // null: nothing is recorded
  int32_t batch_ = 0;
  int64_t layer_begin_ns_ = 0, posted_ns_ = 0, wait_ns_ = 0;
  uint64_t flow_id_ = 0;
};

}  // namespace tandem::model
