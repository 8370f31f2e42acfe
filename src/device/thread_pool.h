// The CPU's stand-in for a stream: a fixed set of threads that run one parallel loop at a time. The caller works too,
// so a pool of one thread starts none. parallel_for is called by one owner thread (the engine's); it allocates nothing
// and returns when every chunk is done. Workers spin briefly between loops of one step, then park.
#pragma once

#include <cstdint>
#include <memory>

namespace tandem::device {

// A borrowed callable: no allocation, valid during the call only.
class LoopBody {
 public:
  template <class F>
  LoopBody(const F& f)  // NOLINT: implicit on purpose, f outlives the call
      : object_(&f),
        call_([](const void* object, int64_t index, int thread) { (*static_cast<const F*>(object))(index, thread); }) {}
  void operator()(int64_t index, int thread) const { call_(object_, index, thread); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int);
};

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;
  // Runs body(i, thread) once for every i in [0, count), thread in [0, num_threads). Which thread runs which i is not
  // defined, so results must not depend on it.
  void parallel_for(int64_t count, LoopBody body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tandem::device
