#include "parallel/exchange/outgoing.h"

#include "base/check.h"
#include "kernels/fp8_rows.h"

namespace tandem::parallel {

const char* to_string(ExchangePayload payload) { return payload == ExchangePayload::kFp8 ? "fp8" : "as they are"; }

int64_t payload_row_bytes(const ExchangeShape& shape) {
  if (shape.payload == ExchangePayload::kFp8) return kernels::fp8_row_bytes(shape.hidden);
  return shape.hidden * int64_t(size_of(shape.dtype));
}

int64_t Outgoing::bytes(const ExchangeShape& shape) {
  return shape.payload == ExchangePayload::kFp8 ? shape.max_tokens * payload_row_bytes(shape) : 0;
}

Outgoing::Outgoing(const ExchangeShape& shape) : rows_(device::Device::kCpu, size_t(bytes(shape))) {
  CHECK(shape.payload == ExchangePayload::kAsTheyAre || shape.dtype == device::DType::kF32);
}

const std::byte* Outgoing::take(device::TensorView x) {
  if (rows_.bytes() == 0) return x.as<std::byte>();
  const int64_t width = x.dim(1), row_bytes = kernels::fp8_row_bytes(width);
  CHECK(x.dim(0) * row_bytes <= int64_t(rows_.bytes()));
  auto* rows = static_cast<std::byte*>(rows_.data());
  for (int64_t t = 0; t < x.dim(0); ++t) {
    kernels::quantise_row(x.as<float>() + t * width, width, rows + t * row_bytes);
  }
  return rows;
}

}  // namespace tandem::parallel
