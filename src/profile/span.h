// Spans: what a thread did and when, kept in a fixed ring until somebody writes them to a trace. Always compiled in:
// while nothing is recorded a span costs one relaxed load (bench/profile_span_bench.cc has the figures).
//   Recorder        of one thread, which alone may call it; only on() is for any thread
//   SharedRecorder  the same for a thread whose spans another one starts and takes out
//   ScopedSpan      from here to the end of the block; OpSpan the same for an operator, with its work
// Names, texts and labels are literals: spans keep the pointers.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "base/clock.h"

namespace tandem::profile {

// Where a span is drawn. Of kLayer and kExchange there is one for each batch of a split step.
enum class Track : uint8_t { kStep, kScheduler, kLayer, kOp, kExchange, kTransfer };

enum class SpanKind : uint8_t {
  kSpan,       // nests in what encloses it on its track
  kAsync,      // may overlap others; told apart by id
  kCounter,    // values at begin_ns
  kFlowBegin,  // an arrow from here ...
  kFlowEnd,    // ... to here, of the same id
};

// Without initialisers, so that a ring's memory is not touched before it is used; write Span{}.
struct Span {
  int64_t begin_ns, end_ns;  // of the clock that the recorder was given
  const char* name;
  const char* text;    // what kind of thing; null: nothing to say
  const char* labels;  // "a,b,c": what dims and then values mean; null: dims are the operator's shape
  uint64_t id;
  std::array<double, 2> values;  // with null labels: floating-point operations, bytes moved
  std::array<int32_t, 4> dims;
  int16_t layer;  // -1: none
  Track track;
  SpanKind kind;
  uint8_t batch;  // of a split step
  uint8_t num_dims, num_values;
};

// Spans in the order in which they ended; the oldest give way when there are more than fit. Value, movable.
class SpanBuffer {
 public:
  SpanBuffer() = default;
  explicit SpanBuffer(size_t capacity)
      : spans_(std::make_unique_for_overwrite<Span[]>(capacity)), capacity_(capacity) {}

  void push(const Span& span) {
    if (capacity_ == 0) return;
    spans_[pushed_ % capacity_] = span;
    ++pushed_;
  }
  size_t capacity() const { return capacity_; }
  size_t size() const { return pushed_ < capacity_ ? pushed_ : capacity_; }
  uint64_t dropped() const { return pushed_ - size(); }
  const Span& operator[](size_t i) const { return spans_[(dropped() + i) % capacity_]; }  // 0: the oldest

 private:
  std::unique_ptr<Span[]> spans_;
  size_t capacity_ = 0;
  uint64_t pushed_ = 0;
};

class Recorder {
 public:
  explicit Recorder(const Clock& clock) : clock_(clock) {}

  bool on() const { return on_.load(std::memory_order_relaxed); }

  // The owner's thread from here on.
  // Spans go into the buffer from now on. ops: operators, too.
  void start(SpanBuffer buffer, bool ops) {
    buffer_ = std::move(buffer);
    ops_ = ops;
    resume(true);
  }
  // Leaves out what happens while off.
  void resume(bool on) { on_.store(on, std::memory_order_relaxed); }
  SpanBuffer stop() {
    resume(false);
    return std::exchange(buffer_, {});
  }
  bool records_ops() const { return ops_; }

  int64_t now_ns() const { return clock_.now().time_since_epoch().count(); }
  void push(const Span& span) { buffer_.push(span); }
  // Which layer and batch the operators that follow belong to; -1: none.
  void enter(int32_t layer, int32_t batch) {
    layer_ = int16_t(layer);
    batch_ = uint8_t(batch);
  }
  int16_t layer() const { return layer_; }
  uint8_t batch() const { return batch_; }
  void count(const char* name, const char* labels, std::initializer_list<int32_t> values);

  // How even the slots of this rank were used since the last take_expert_load(): pairs of token and slot, and the
  // mean over layers of mean / max of the slots. slot_begin: [slots + 1] as in kernels::SlotSort.
  struct ExpertLoad {
    int64_t pairs = 0;
    int32_t num_layers = 0;  // with pairs
    double balance_sum = 0;
    double balance() const { return num_layers > 0 ? balance_sum / num_layers : 1; }
  };
  void add_expert_rows(std::span<const int32_t> slot_begin);
  ExpertLoad take_expert_load() { return std::exchange(expert_load_, {}); }

 private:
  const Clock& clock_;
  std::atomic<bool> on_{false};
  bool ops_ = false;
  int16_t layer_ = -1;
  uint8_t batch_ = 0;
  ExpertLoad expert_load_;
  SpanBuffer buffer_;
};

// Any thread; few spans.
class SharedRecorder {
 public:
  explicit SharedRecorder(const Clock& clock) : inner_(clock) {}
  bool on() const { return inner_.on(); }
  int64_t now_ns() const { return inner_.now_ns(); }
  void start(SpanBuffer buffer) {
    std::lock_guard lock(mutex_);
    inner_.start(std::move(buffer), true);
  }
  void resume(bool on) {
    std::lock_guard lock(mutex_);
    inner_.resume(on);
  }
  SpanBuffer stop() {
    std::lock_guard lock(mutex_);
    return inner_.stop();
  }
  void push(const Span& span) {
    std::lock_guard lock(mutex_);
    if (inner_.on()) inner_.push(span);
  }

 private:
  std::mutex mutex_;
  Recorder inner_;  // guarded by mutex_ but for on() and now_ns()
};

// One span on the recorder's thread, of the layer and batch that it stands in.
Span make_span(const Recorder& recorder, Track track, const char* name, int64_t begin_ns, int64_t end_ns);

class ScopedSpan {
 public:
  ScopedSpan(Recorder* recorder, Track track, const char* name) {
    if (recorder != nullptr && recorder->on()) begin(*recorder, track, name);
  }
  ~ScopedSpan() {
    if (recorder_ != nullptr) end();
  }
  ScopedSpan(const ScopedSpan&) = delete;
  ScopedSpan& operator=(const ScopedSpan&) = delete;

 private:
  void begin(Recorder& recorder, Track track, const char* name);
  void end();
  Recorder* recorder_ = nullptr;  // null: not recorded
  const char* name_;
  int64_t begin_ns_;
  Track track_;
};

class OpSpan {
 public:
  OpSpan(Recorder* recorder, const char* name) {
    if (recorder != nullptr && recorder->on()) begin(*recorder, name);
  }
  ~OpSpan() {
    if (recorder_ != nullptr) end();
  }
  OpSpan(const OpSpan&) = delete;
  OpSpan& operator=(const OpSpan&) = delete;

  // Whether work() is worth working out.
  explicit operator bool() const { return recorder_ != nullptr; }
  // Shape (at most four dimensions; the first is rows), floating-point operations, bytes that have to move at least.
  void work(std::initializer_list<int64_t> dims, double flops, double bytes);

 private:
  void begin(Recorder& recorder, const char* name);
  void end();
  Recorder* recorder_ = nullptr;
  Span span_;  // while recorded
};

}  // namespace tandem::profile
