#include "scheduler/lifecycle.h"

namespace tandem::scheduler {

const char* to_string(RequestState state) {
  switch (state) {
    case RequestState::kNew: return "new";
    case RequestState::kBootstrapping: return "bootstrapping";
    case RequestState::kPreparing: return "preparing";
    case RequestState::kReserved: return "reserved";
    case RequestState::kReceiving: return "receiving";
    case RequestState::kArrived: return "arrived";
    case RequestState::kWaiting: return "waiting";
    case RequestState::kPrefilling: return "prefilling";
    case RequestState::kInflight: return "inflight";
    case RequestState::kRunning: return "running";
    case RequestState::kRetracted: return "retracted";
    case RequestState::kFinished: return "finished";
    case RequestState::kFailed: return "failed";
    case RequestState::kAborted: return "aborted";
    case RequestState::kCount: break;
  }
  return "?";
}

}  // namespace tandem::scheduler
