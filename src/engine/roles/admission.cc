#include "engine/roles/admission.h"

#include <fmt/format.h>

namespace tandem::engine {

Admitted admit_disaggregated(Core& core, api::EngineRequest input, scheduler::LifeKind kind, const RoomTable& rooms,
                             bool busy) {
  const bool is_dropped_probe = input.is_health_check && busy;
  Request* request = core.admit(std::move(input), kind);
  if (request == nullptr) return {};
  const auto& bootstrap = request->input.bootstrap;
  const bool is_fake = core.config.fake_transfer || (bootstrap && bootstrap->is_fake());
  if (!is_fake && (!bootstrap || !bootstrap->room)) {
    core.end(*request, aborted("Invalid request: Disaggregated request received without boostrap room id.", 400));
    return {};
  }
  if (is_dropped_probe) {
    core.end(*request, finished_by_length(0));
    return {};
  }
  if (is_fake) return {request, true, 0};
  if (rooms.contains(*bootstrap->room)) {
    core.end(*request, aborted(fmt::format("bootstrap_room {} is already in use", *bootstrap->room), 400));
    return {};
  }
  return {request, false, *bootstrap->room};
}

}  // namespace tandem::engine
