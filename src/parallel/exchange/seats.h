// What a rank shows the other ranks of its process in an exchange: where its rows lie, where its results lie, and two
// counters that are all the synchronisation.
//   dispatched: x and slots are readable. They stay so until all ranks have answered, which they do after reading them.
//   answered:   results and their index are readable. They stay so until all ranks have dispatched again, which they do
//               after adding up what they read.
#pragma once

#include <atomic>
#include <vector>

#include "parallel/exchange/collect.h"
#include "parallel/exchange/outgoing.h"

namespace tandem::parallel {

struct alignas(64) Published {
  ExchangeSource source;  // written by the owner before `dispatched` counts
  std::atomic<uint64_t> dispatched = 0, answered = 0;
};

struct Seat {
  Seat(const ExchangeShape& shape, Rank rank) : channels(size_t(shape.num_channels)) {
    for (int32_t i = 0; i < shape.num_channels; ++i) collectors.emplace_back(shape, rank);
    for (int32_t i = 0; i < shape.num_channels; ++i) outgoing.emplace_back(shape);
  }
  std::vector<Published> channels;
  std::vector<Collector> collectors;  // by channel, as outgoing
  std::vector<Outgoing> outgoing;
  std::atomic<bool> parked = false;
};

enum class ExchangeStage : uint8_t { kFree, kDispatched, kReceived, kAnswered };

}  // namespace tandem::parallel
