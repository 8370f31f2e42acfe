#include "model/arch/gpu_step.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::model {
namespace {

using device::Buffer;
using device::Device;

constexpr size_t kPieceAlign = 64;

size_t round_up(size_t bytes) { return (bytes + kPieceAlign - 1) / kPieceAlign * kPieceAlign; }

// The step's values; ids, positions, slots, rows of logits; the sequences of two halves; block tables with blocks of
// one token.
size_t input_bytes(const ForwardLimits& limits) {
  const size_t ids = 4 * round_up(size_t(limits.max_tokens) * sizeof(int32_t));
  const size_t sequences = 2 * round_up(size_t(limits.max_sequences + 1) * sizeof(kernels::SequenceSpan));
  const size_t blocks = size_t(limits.max_sequences + 1) * round_up(size_t(limits.max_context) * sizeof(int32_t));
  return round_up(sizeof(kernels::StepValues)) + ids + sequences + blocks;
}

size_t count_bytes(const ModelConfig& config) {
  return size_t(config.num_layers) * size_t(config.num_routed_experts) * sizeof(int32_t);
}

device::Event must_create_event() {
  auto event = device::Event::create();
  CHECK(event.has_value());
  return std::move(*event);
}

}  // namespace

GpuStep::GpuStep(const ModelConfig& config, const LoadOptions& options, const ExpertSlots* slots,
                 const device::Stream& stream)
    : num_experts_(config.num_routed_experts),
      num_layers_(config.num_layers),
      stream_(stream),
      slots_(slots),
      loop_back_(options.loop_back),
      row_(row_of(config, options)),
      staging_(Device::kPinned, input_bytes(options.limits)),
      inputs_(Device::kCuda, input_bytes(options.limits)),
      counts_(Device::kCuda, count_bytes(config)),
      counted_(Device::kPinned, count_bytes(config)),
      sent_(must_create_event()),
      counts_sent_(must_create_event()) {
  if (slots == nullptr) return;
  const size_t bytes = size_t(num_layers_) * size_t(row_.size) * sizeof(int32_t);
  table_staging_ = Buffer(Device::kPinned, bytes);
  tables_ = Buffer(Device::kCuda, bytes);
  for (int32_t layer = 0; layer < num_layers_; ++layer) {
    if (slots_->has_experts(layer)) write_tables(layer);
  }
  switches_seen_ = slots_->num_switches();
  device::copy_bytes(tables_.data(), table_staging_.data(), bytes);
}

int64_t GpuStep::bytes(const ModelConfig& config, const LoadOptions& options) {
  const int64_t tables = config.num_layers * row_of(config, options).size * int64_t(sizeof(int32_t));
  return int64_t(input_bytes(options.limits) + count_bytes(config)) + (config.num_routed_experts > 0 ? tables : 0);
}

GpuStep::TableRow GpuStep::row_of(const ModelConfig& config, const LoadOptions& options) {
  const experts::EpTopology& topology = options.experts.topology;
  const int64_t replicas = topology.num_slots(), per_rank = topology.slots_per_rank;
  TableRow row;
  row.slot = row.begin + config.num_routed_experts + 1;
  row.upto = row.slot + replicas;
  row.place = row.upto + replicas;
  row.size = row.place + per_rank;
  return row;
}

void GpuStep::write_tables(int32_t layer) {
  const LayerExperts& now = slots_->layer(layer);
  int32_t* const row = static_cast<int32_t*>(table_staging_.data()) + layer * row_.size;
  CHECK(int64_t(now.dispatch.begin.size()) == row_.slot - row_.begin);
  CHECK(int64_t(now.dispatch.slot.size()) <= row_.upto - row_.slot);
  CHECK(now.dispatch.slot.size() == now.dispatch.upto.size());
  CHECK(int64_t(now.place_of_slot.size()) == row_.size - row_.place);
  std::ranges::copy(now.dispatch.begin, row + row_.begin);
  std::ranges::copy(now.dispatch.slot, row + row_.slot);
  std::ranges::copy(now.dispatch.upto, row + row_.upto);
  std::ranges::copy(now.place_of_slot, row + row_.place);
  if (!loop_back_) return;
  for (int64_t i = row_.slot; i < row_.upto; ++i) row[i] %= slots_->shape().slots_per_rank;
}

// On the model's stream, behind the kernels of the step before and ahead of this one's.
void GpuStep::follow_switches() {
  if (slots_ == nullptr || slots_->num_switches() == switches_seen_) return;
  for (int32_t layer = 0; layer < num_layers_; ++layer) {
    if (slots_->switched_at(layer) <= switches_seen_) continue;
    write_tables(layer);
    const int64_t at = layer * row_.size;
    device::copy_async(stream_, static_cast<int32_t*>(tables_.data()) + at,
                       static_cast<const int32_t*>(table_staging_.data()) + at, size_t(row_.size) * sizeof(int32_t));
  }
  switches_seen_ = slots_->num_switches();
}

GpuStep::Piece GpuStep::take(size_t bytes) {
  CHECK(round_up(bytes) <= staging_.bytes() - used_);
  const Piece piece{static_cast<std::byte*>(staging_.data()) + used_, static_cast<std::byte*>(inputs_.data()) + used_};
  used_ += round_up(bytes);
  return piece;
}

std::span<const int32_t> GpuStep::send(std::span<const int32_t> values, size_t size, int32_t filling) {
  if (size == 0) return {};
  const Piece piece = take(size * sizeof(int32_t));
  auto* out = reinterpret_cast<int32_t*>(piece.host);
  std::fill(std::copy(values.begin(), values.end(), out), out + size, filling);
  return {reinterpret_cast<const int32_t*>(piece.gpu), size};
}

// What fills up has one key, in whatever is the cache's first row.
std::span<const kernels::SequenceSpan> GpuStep::send(std::span<const kernels::SequenceSpan> sequences,
                                                     int32_t block_tokens, size_t size) {
  if (size == 0) return {};
  const Piece piece = take(size * sizeof(kernels::SequenceSpan));
  auto* out = reinterpret_cast<kernels::SequenceSpan*>(piece.host);
  for (const kernels::SequenceSpan& sequence : sequences) {
    const size_t tokens = size_t(sequence.prefix_len + sequence.num_rows);
    const size_t blocks = (tokens + size_t(block_tokens) - 1) / size_t(block_tokens);
    *out = sequence;
    out->block_table = send({sequence.block_table, blocks}).data();
    ++out;
  }
  const int32_t first_block = 0;
  const int32_t* table = size > sequences.size() ? send({&first_block, 1}).data() : nullptr;
  for (size_t i = sequences.size(); i < size; ++i) *out++ = {int32_t(i), 1, 0, table};
  return {reinterpret_cast<const kernels::SequenceSpan*>(piece.gpu), size};
}

void GpuStep::begin(const ForwardBatch& batch) {
  if (in_flight_) sent_.synchronize();  // the staging memory is still being read, that of the tables, too
  follow_switches();
  used_ = 0;
  const Piece piece = take(sizeof(kernels::StepValues));
  *reinterpret_cast<kernels::StepValues*>(piece.host) = {batch.step, int64_t(batch.token_ids.size())};
  values_ = reinterpret_cast<const kernels::StepValues*>(piece.gpu);
}

void GpuStep::finish() {
  device::copy_async(stream_, inputs_.data(), staging_.data(), used_);
  sent_.record(stream_);
  in_flight_ = true;
  device::fill_async(stream_, counts_.data(), 0, counts_.bytes());
}

ForwardBatch GpuStep::upload(const ForwardBatch& batch, int32_t block_tokens, std::span<BatchPart> parts) {
  begin(batch);
  ForwardBatch there = batch;
  there.token_ids = send(batch.token_ids);
  there.positions = send(batch.positions);
  there.slots = send(batch.slots);
  there.logit_rows = send(batch.logit_rows);
  there.sequences = {};
  for (BatchPart& part : parts) part.sequences = send(part.sequences, block_tokens, part.sequences.size());
  finish();
  return there;
}

ForwardBatch GpuStep::upload_filled(const ForwardBatch& batch, int32_t block_tokens, int64_t rows, BatchPart& part) {
  begin(batch);
  const auto size = size_t(rows);
  ForwardBatch there = batch;
  there.token_ids = send(batch.token_ids, size, 0);
  there.positions = send(batch.positions, size, 0);
  there.slots = send(batch.slots, size, -1);
  there.logit_rows = send(batch.logit_rows, size, 0);
  there.sequences = {};
  part = {send(batch.sequences, block_tokens, size), 0, rows};
  finish();
  return there;
}

kernels::SlotChoice GpuStep::choice(int32_t layer) const {
  const int32_t* const row = static_cast<const int32_t*>(tables_.data()) + layer * row_.size;
  kernels::SlotChoice choice{row + row_.begin, row + row_.slot, row + row_.upto, num_experts_};
  choice.values = values_;
  choice.layer = uint64_t(layer);
  choice.num_layers = uint64_t(num_layers_);
  return choice;
}

kernels::GpuPlaces GpuStep::places(int32_t layer) const {
  const int32_t* const row = static_cast<const int32_t*>(tables_.data()) + layer * row_.size;
  return {&slots_->weights_of_place(0), slots_->num_places(), slots_->shape().slots_per_rank, row + row_.place};
}

int32_t* GpuStep::counts(int32_t layer) const {
  return static_cast<int32_t*>(counts_.data()) + size_t(layer) * size_t(num_experts_);
}

void GpuStep::send_counts() {
  device::copy_async(stream_, counted_.data(), counts_.data(), counts_.bytes());
  counts_sent_.record(stream_);
}

void GpuStep::add_counts(int32_t* to) const {
  counts_sent_.synchronize();
  const auto* const counted = static_cast<const int32_t*>(counted_.data());
  for (size_t i = 0; i < counts_.bytes() / sizeof(int32_t); ++i) to[i] += counted[i];
}

}  // namespace tandem::model
