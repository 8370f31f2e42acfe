#include "model/arch/group_gather.h"

#include <cstring>

#include "base/check.h"

namespace tandem::model {

namespace {

using device::Buffer;
using device::DType;
using device::TensorView;

// Longest sleep between two looks; with an exchange that this thread must drive, much shorter.
constexpr Duration kGatherLook = std::chrono::milliseconds(20), kDrivenLook = std::chrono::microseconds(100);

Buffer buffer_of(int64_t bytes) { return bytes > 0 ? Buffer(device::Device::kCpu, size_t(bytes)) : Buffer(); }

TensorView view_of(const Buffer& buffer, DType dtype, int64_t rows, int64_t cols) {
  CHECK(size_t(rows * cols) * size_of(dtype) <= buffer.bytes());
  return {buffer.data(), dtype, {rows, cols}};
}

}  // namespace

GroupGather::GroupGather(std::unique_ptr<parallel::AttentionGroup> seat, const GatherBytes& bytes, const Clock* clock,
                         parallel::ExpertExchange* exchange)
    : seat_(std::move(seat)), clock_(clock), driven_(exchange) {
  if (is_alone()) return;
  CHECK(clock_ != nullptr);
  latents_ = buffer_of(bytes.latents);
  heads_ = buffer_of(bytes.heads);
  chosen_ = buffer_of(bytes.chosen);
  logits_ = buffer_of(bytes.logits);
}

TensorView GroupGather::latents(DType dtype, int64_t rows, int64_t cols) const {
  return view_of(latents_, dtype, rows, cols);
}
TensorView GroupGather::heads(DType dtype, int64_t rows, int64_t cols) const {
  return view_of(heads_, dtype, rows, cols);
}
TensorView GroupGather::chosen(int64_t rows, int64_t cols) const { return view_of(chosen_, DType::kF32, rows, cols); }
TensorView GroupGather::logits(int64_t rows, int64_t cols) const { return view_of(logits_, DType::kF32, rows, cols); }

Status GroupGather::exchange(parallel::ExchangeTag tag, const Buffer& mine) {
  seat_->post(tag, mine.data());
  for (;;) {
    const TimePoint now = clock_->now();
    ASSIGN_OR_RETURN(const bool complete, seat_->poll(now));
    if (complete) return Ok{};
    const bool is_driven = driven_ != nullptr && driven_->drive(now);
    seat_->wait(is_driven ? kDrivenLook : kGatherLook);
  }
}

Status GroupGather::gather_latents(parallel::ExchangeTag tag, TensorView all) {
  RETURN_IF_ERROR(exchange(tag, latents_));
  const size_t row_bytes = size_t(all.dim(1)) * size_of(all.dtype());
  for (int32_t member = 0; member < size(); ++member) {
    const parallel::RowShare rows = parallel::share_of(all.dim(0), size(), member);
    if (rows.count() == 0) continue;
    std::memcpy(all.as<std::byte>() + size_t(rows.begin) * row_bytes, seat_->of(member),
                size_t(rows.count()) * row_bytes);
  }
  return Ok{};
}

Status GroupGather::gather_heads(parallel::ExchangeTag tag, int64_t rows, TensorView own) {
  RETURN_IF_ERROR(exchange(tag, heads_));
  join_columns(parallel::share_of(rows, size(), index()).begin, own);
  return Ok{};
}

Status GroupGather::gather_chosen(parallel::ExchangeTag tag, std::span<const int32_t> owners, TensorView all) {
  RETURN_IF_ERROR(exchange(tag, chosen_));
  const size_t row_bytes = size_t(all.dim(1)) * sizeof(float);
  for (size_t i = 0; i < owners.size(); ++i) {
    const auto* theirs = static_cast<const std::byte*>(seat_->of(owners[i]));
    std::memcpy(all.as<std::byte>() + i * row_bytes, theirs + i * row_bytes, row_bytes);
  }
  return Ok{};
}

Status GroupGather::gather_logits(parallel::ExchangeTag tag, TensorView all) {
  RETURN_IF_ERROR(exchange(tag, logits_));
  if (all.data() != nullptr) join_columns(0, all);
  return Ok{};
}

void GroupGather::join_columns(int64_t first_row, TensorView to) const {
  const int64_t element = int64_t(size_of(to.dtype())), width = to.dim(1) * element;
  for (int32_t member = 0; member < size(); ++member) {
    const parallel::RowShare columns = parallel::share_of(to.dim(1), size(), member);
    const int64_t bytes = columns.count() * element;
    const auto* from = static_cast<const std::byte*>(seat_->of(member)) + first_row * bytes;
    std::byte* at = to.as<std::byte>() + columns.begin * element;
    for (int64_t row = 0; row < to.dim(0); ++row, from += bytes, at += width) std::memcpy(at, from, size_t(bytes));
  }
}

}  // namespace tandem::model
