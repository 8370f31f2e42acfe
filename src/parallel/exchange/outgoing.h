// What others read of a rank's dispatch on one channel: x where it lies, or its rows in FP8. Owner: the engine thread.
#pragma once

#include "device/buffer.h"
#include "parallel/expert_exchange.h"

namespace tandem::parallel {

class Outgoing {
 public:
  explicit Outgoing(const ExchangeShape& shape);
  // [T, payload_row_bytes]; stays until the next call. An FP8 payload needs x in f32.
  const std::byte* take(device::TensorView x);
  static int64_t bytes(const ExchangeShape& shape);

 private:
  device::Buffer rows_;  // empty where x goes as it is
};

}  // namespace tandem::parallel
