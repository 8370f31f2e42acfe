#include "device/thread_pool.h"

#include <atomic>
#include <thread>
#include <vector>

#include "base/check.h"

namespace tandem::device {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// About 40 us of looking before a worker parks, and of waiting before the caller yields its core: longer than the gap
// between two loops of a step, shorter than anything a person could notice on an idle server.
constexpr int kSpins = 1000;

}  // namespace

// One word says everything a worker needs to claim an index: generation of the loop (upper half) and indices left
// (lower half). A claim is a compare-and-swap that takes one; whoever holds a claim keeps the caller inside
// parallel_for, so body_ and count_ cannot change under it. A worker that comes late finds nothing left and touches
// nothing, hence the caller never waits for a thread that has no part in the loop.
struct ThreadPool::State {
  alignas(64) std::atomic<uint64_t> claims{0};
  alignas(64) std::atomic<int64_t> done{0};
  alignas(64) std::atomic<int32_t> parked{0};
  std::atomic<uint32_t> wake{0};
  std::atomic<bool> stopping{false};
  const LoopBody* body = nullptr;
  int64_t count = 0;
  int num_threads = 1;
  std::vector<std::jthread> workers;

  // Works until the loop has no index left.
  void drain(int thread) {
    uint64_t seen = claims.load(std::memory_order_acquire);
    while (uint32_t(seen) != 0) {
      if (!claims.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      (*body)(count - int64_t(uint32_t(seen)), thread);
      done.fetch_add(1, std::memory_order_release);
      seen = claims.load(std::memory_order_acquire);
    }
  }

  void run_worker(int thread) {
    uint64_t generation = 0;
    while (!stopping.load(std::memory_order_acquire)) {
      generation = wait_for_loop(generation);
      drain(thread);
    }
  }

  // Returns the generation of a loop that is newer than `last`, or `last` when stopping.
  uint64_t wait_for_loop(uint64_t last) {
    for (;;) {
      for (int i = 0; i < kSpins; ++i) {
        const uint64_t now = claims.load(std::memory_order_acquire) >> 32;
        if (now != last || stopping.load(std::memory_order_acquire)) return now;
        pause_cpu();
      }
      const uint32_t ticket = wake.load(std::memory_order_acquire);
      parked.fetch_add(1, std::memory_order_seq_cst);
      // The caller stores claims, then reads parked; we add to parked, then read claims: one of us sees the other.
      const bool idle =
          claims.load(std::memory_order_seq_cst) >> 32 == last && !stopping.load(std::memory_order_seq_cst);
      if (idle) wake.wait(ticket, std::memory_order_acquire);
      parked.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  void wake_parked() {
    if (parked.load(std::memory_order_seq_cst) == 0) return;
    wake.fetch_add(1, std::memory_order_release);
    wake.notify_all();
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  CHECK(num_threads >= 1);
  state_->num_threads = num_threads;
  state_->workers.reserve(size_t(num_threads - 1));
  for (int thread = 1; thread < num_threads; ++thread) {
    state_->workers.emplace_back([state = state_.get(), thread] { state->run_worker(thread); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping.store(true, std::memory_order_seq_cst);
  state_->wake_parked();
  state_->workers.clear();  // joins
}

int ThreadPool::num_threads() const { return state_->num_threads; }

void ThreadPool::parallel_for(int64_t count, LoopBody body) {
  State& state = *state_;
  CHECK(count >= 0 && count < int64_t(UINT32_MAX));
  if (count <= 1 || state.num_threads == 1) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  state.body = &body;
  state.count = count;
  state.done.store(0, std::memory_order_relaxed);
  const uint64_t generation = (state.claims.load(std::memory_order_relaxed) >> 32) + 1;
  state.claims.store(generation << 32 | uint64_t(count), std::memory_order_seq_cst);
  state.wake_parked();
  state.drain(0);
  for (int spins = 0; state.done.load(std::memory_order_acquire) != count; ++spins) {
    if (spins < kSpins) {
      pause_cpu();
    } else {
      std::this_thread::yield();  // more threads than cores: let the one that holds our claim run
    }
  }
}

}  // namespace tandem::device
