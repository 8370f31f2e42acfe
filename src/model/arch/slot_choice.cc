#include "model/arch/slot_choice.h"

namespace tandem::model {

void choose_slots(const experts::LayerDispatch& dispatch, const SlotChoices& how, std::span<int32_t> ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    const uint64_t token = uint64_t(how.first_token) + i / size_t(how.top_k);
    const auto k = int64_t(i % size_t(how.top_k));
    int32_t& id = ids[i];
    if (how.fakes_routing > 0) {
      const uint32_t first = experts::draw_of(how.seed, token, 0);
      id = int32_t((first + k * how.fakes_routing / how.top_k) % how.fakes_routing);
    }
    if (how.expert_counts) ++how.expert_counts[id];
    id = dispatch.choose(id, experts::draw_of(how.seed, token, uint32_t(k)));
    if (how.slot_counts) ++how.slot_counts[id];
  }
}

}  // namespace tandem::model
