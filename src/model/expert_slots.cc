#include "model/expert_slots.h"

#include <utility>

#include "base/check.h"
#include "device/digest.h"
#include "device/gpu.h"

namespace tandem::model {

using kernels::ExpertWeights;

ExpertSlots::ExpertSlots(Shape shape, const ExpertWeights& form, device::Device device)
    : shape_(std::move(shape)), place_bytes_(form.gate_up.bytes() + form.down.bytes()) {
  const size_t in_use = shape_.expert_layers.size() * size_t(shape_.slots_per_rank);
  const size_t places = in_use + size_t(shape_.num_spares);
  if (device == device::Device::kCpu) {
    CHECK(place_bytes_ % sizeof(uint64_t) == 0);
    slab_ = device::Buffer(device, places * (place_bytes_ + sizeof(uint64_t)));
    digests_ = reinterpret_cast<uint64_t*>(static_cast<std::byte*>(slab_.data()) + places * place_bytes_);
  } else {
    slab_ = device::Buffer(device, places * place_bytes_);
    if (shape_.num_spares > 0) gpu_digests_ = device::Buffer(device, places * sizeof(uint64_t));
    host_digests_.resize(places, 0);
    digests_ = host_digests_.data();
  }
  for (size_t i = 0; i < places; ++i) {
    std::byte* at = place(int32_t(i)).data();
    weights_.push_back({form.gate_up.like(at), form.down.like(at + form.gate_up.bytes())});
  }
  layers_.resize(size_t(shape_.num_layers));
  switched_at_.resize(layers_.size(), 0);
  table_.resize(size_t(shape_.num_layers) * size_t(shape_.slots_per_rank), nullptr);
  int32_t next = 0;
  for (const int32_t layer : shape_.expert_layers) {
    for (int32_t slot = 0; slot < shape_.slots_per_rank; ++slot) layers_[size_t(layer)].place_of_slot.push_back(next++);
    point(layer);
  }
}

std::span<std::byte> ExpertSlots::place(int32_t place) const {
  return {static_cast<std::byte*>(slab_.data()) + size_t(place) * place_bytes_, place_bytes_};
}

std::span<std::byte> ExpertSlots::slab() const {
  CHECK(slab_.device() == device::Device::kCpu);
  return {static_cast<std::byte*>(slab_.data()), slab_.bytes()};
}

Status ExpertSlots::fill(int32_t place, const ExpertWeights& expert) {
  const ExpertWeights& form = weights_[size_t(place)];
  if (!expert.gate_up.has_form_of(form.gate_up) || !expert.down.has_form_of(form.down)) {
    return invalid_input("its routed experts are stored in several forms (types or scale blocks); slots need one");
  }
  const std::span<std::byte> to = this->place(place);
  expert.gate_up.copy_to(to.data());
  expert.down.copy_to(to.data() + expert.gate_up.bytes());
  if (slab_.device() == device::Device::kCpu) {
    digests_[place] = device::digest(to);
  } else if (gpu_digests_.bytes() > 0) {
    uint64_t* const there = static_cast<uint64_t*>(gpu_digests_.data()) + place;
    device::digest_async(device::Stream(), to, there);
    device::copy_bytes(&digests_[place], there, sizeof(uint64_t));  // behind it on the default stream
  }
  return Ok{};
}

void ExpertSlots::set_placement(int32_t layer, std::vector<int32_t> logical_of_slot, experts::LayerDispatch dispatch) {
  layers_[size_t(layer)].logical_of_slot = std::move(logical_of_slot);
  layers_[size_t(layer)].dispatch = std::move(dispatch);
}

void ExpertSlots::switch_layer(int32_t layer, LayerExperts& next) {
  CHECK(has_experts(layer));
  CHECK(next.place_of_slot.size() == size_t(shape_.slots_per_rank));
  std::swap(layers_[size_t(layer)], next);
  switched_at_[size_t(layer)] = ++num_switches_;
  point(layer);
}

void ExpertSlots::point(int32_t layer) {
  const LayerExperts& now = layers_[size_t(layer)];
  for (size_t slot = 0; slot < now.place_of_slot.size(); ++slot) {
    table_[size_t(layer) * size_t(shape_.slots_per_rank) + slot] = &weights_[size_t(now.place_of_slot[slot])];
  }
}

}  // namespace tandem::model
