// Several nodes of one group in one process: each node's part in threads of its own, over loopback UCX. Also used by
// bench/parallel_exchange_bench.cc.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "device/buffer.h"
#include "parallel/expert_exchange.h"
#include "parallel/node_group.h"

namespace tandem::parallel {

inline MeetingOptions meeting_options(int32_t num_nodes, int32_t node, int32_t ranks_per_node, uint16_t port) {
  MeetingOptions options;
  options.num_nodes = num_nodes;
  options.node_rank = node;
  options.ranks_per_node = ranks_per_node;
  options.host = "127.0.0.1";
  options.port = port;
  options.timeout = std::chrono::seconds(30);
  options.version = "test";
  return options;
}

using MeetResult = Result<std::shared_ptr<NodeGroup>>;

// All meet at once; results by node.
inline std::vector<MeetResult> meet_all(const std::vector<MeetingOptions>& options, const Clock& clock) {
  std::vector<MeetResult> results(options.size(), MeetResult(timed_out("not run")));
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < options.size(); ++i) {
      threads.emplace_back([&, i] { results[i] = NodeGroup::meet(options[i], clock, [] { return false; }); });
    }
  }
  return results;
}

// One rank's part of one exchange with random tokens, and what came of it.
struct ExchangeRound {
  ExchangeMode mode = ExchangeMode::kNormal;
  ExchangeTag tag;
  uint64_t seed = 0;  // of this round, the same on all ranks
  int64_t num_tokens = 0;
};

class ExchangeRank {
 public:
  ExchangeRank(ExpertExchange& exchange, const Clock& clock) : exchange_(exchange), clock_(clock) {
    const ExchangeShape& shape = exchange.shape();
    x_.resize(size_t(shape.max_tokens * shape.hidden) * device::size_of(shape.dtype));
    slots_.resize(size_t(shape.max_tokens * shape.top_k));
  }

  // The tokens depend on seed and rank alone: every token chooses top_k different slots.
  void draw(const ExchangeRound& round) {
    const ExchangeShape& shape = exchange_.shape();
    std::mt19937_64 random(round.seed * 1000 + uint64_t(exchange_.rank().value));
    const int32_t num_slots = shape.num_ranks * shape.slots_per_rank;
    for (int64_t i = 0; i < round.num_tokens * shape.hidden; ++i) {
      const auto drawn = uint16_t(random());
      if (shape.dtype == device::DType::kF32) {
        reinterpret_cast<float*>(x_.data())[i] = std::ldexp(float(drawn) / 32768 - 1, -int(i % 11));
      } else {
        reinterpret_cast<uint16_t*>(x_.data())[i] = drawn;
      }
    }
    for (int64_t t = 0; t < round.num_tokens; ++t) {
      auto slot = int32_t(random() % uint64_t(num_slots));
      for (int32_t k = 0; k < shape.top_k; ++k) {
        slots_[size_t(t * shape.top_k + k)] = slot;
        slot = (slot + 1 + int32_t(random() % uint64_t(num_slots / shape.top_k))) % num_slots;
      }
    }
  }

  // Results of (token, choice) in order, or the error. The "expert" writes slot + 3 * its input.
  Result<std::vector<float>> run(const ExchangeRound& round) {
    const ExchangeShape& shape = exchange_.shape();
    draw(round);
    RETURN_IF_ERROR(run_drawn(round));
    std::vector<float> all;
    for (const float* row : rows_) all.insert(all.end(), row, row + shape.hidden);
    return all;
  }

  void set_experts(bool on) { has_experts_ = on; }
  // The same with the tokens drawn last.
  Status run_drawn(const ExchangeRound& round) {
    const ExchangeShape& shape = exchange_.shape();
    const device::TensorView x(x_.data(), shape.dtype, {round.num_tokens, shape.hidden});
    const device::TensorView slots(slots_.data(), device::DType::kI32, {round.num_tokens, shape.top_k});
    exchange_.post_dispatch(0, round.tag, round.mode, x, slots);
    ASSIGN_OR_RETURN(const ReceivedRows received, receive());
    if (has_experts_) experts(received);
    exchange_.post_results(0);
    rows_.resize(size_t(round.num_tokens * shape.top_k));
    for (;;) {
      ASSIGN_OR_RETURN(const bool complete, exchange_.poll_results(0, clock_.now(), rows_));
      if (complete) return Ok{};
      exchange_.wait(0, std::chrono::milliseconds(20));
    }
  }

 private:
  Result<ReceivedRows> receive() {
    for (;;) {
      ASSIGN_OR_RETURN(const std::optional<ReceivedRows> received, exchange_.poll_received(0, clock_.now()));
      if (received) return *received;
      exchange_.wait(0, std::chrono::milliseconds(20));
    }
  }

  void experts(const ReceivedRows& received) {
    const ExchangeShape& shape = exchange_.shape();
    if (shape.dtype == device::DType::kF32) return experts(received, received.rows.as<float>());
    experts(received, received.rows.as<uint16_t>());
  }
  template <class Value>
  void experts(const ReceivedRows& received, const Value* rows) {
    const ExchangeShape& shape = exchange_.shape();
    auto* results = received.results.as<float>();
    for (int32_t slot = 0; slot < shape.slots_per_rank; ++slot) {
      const int32_t global = exchange_.rank().value * shape.slots_per_rank + slot;
      for (int32_t r = received.sort.slot_begin[size_t(slot)]; r < received.sort.slot_begin[size_t(slot) + 1]; ++r) {
        const Value* in = rows + int64_t(received.sort.row_token[size_t(r)]) * shape.hidden;
        for (int64_t i = 0; i < shape.hidden; ++i) results[r * shape.hidden + i] = float(global) + 3 * float(in[i]);
      }
    }
  }

  ExpertExchange& exchange_;
  const Clock& clock_;
  bool has_experts_ = true;
  std::vector<std::byte> x_;  // bf16 patterns, taken as numbers, or f32
  std::vector<int32_t> slots_;
  std::vector<const float*> rows_;
};

}  // namespace tandem::parallel
