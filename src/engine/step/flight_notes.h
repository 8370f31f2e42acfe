// What a rank's engine notes in its flight recorder beside its votes and exchanges: when it runs a batch, and why it
// gives up. Owner: the engine thread. A null recorder: nothing is noted.
#pragma once

#include <string>

#include "model/model.h"
#include "profile/flight_recorder.h"

namespace tandem::engine {

inline void note_forward_begin(profile::FlightRecorder* flight, const model::ForwardBatch& batch) {
  if (flight == nullptr) return;
  profile::FlightEntry entry;
  entry.kind = profile::FlightKind::kForwardBegin;
  entry.step = batch.step;
  const bool is_decode = batch.phase == model::Phase::kDecode;
  const auto kind = batch.token_ids.empty() ? profile::FlightStep::kIdle
                    : is_decode             ? profile::FlightStep::kDecode
                                            : profile::FlightStep::kExtend;
  entry.detail = uint8_t(kind);
  entry.words = {uint32_t(batch.token_ids.size()), uint32_t(batch.sequences.size())};
  flight->add(entry);
}

inline void note_forward_end(profile::FlightRecorder* flight, uint64_t step, const Status& done) {
  if (flight == nullptr) return;
  profile::FlightEntry entry;
  entry.kind = profile::FlightKind::kForwardEnd;
  entry.step = step;
  entry.detail = done ? 0 : 1;
  flight->add(entry);
}

inline void note_end(profile::FlightRecorder* flight, uint64_t step, const std::string& reason) {
  if (flight != nullptr) flight->add_end(step, reason);
}

}  // namespace tandem::engine
