// A fault point where the bytes of a read arrive, so that whole processes can be watched refusing spoiled handovers.
// Only a build with TANDEM_FAULTS (preset `faults`) has it; in any other ReadFaults is empty and passes bytes on.
// Owner: the transfer thread.
#pragma once

#include <string_view>

#include "kv/transfer.h"

#ifdef TANDEM_FAULTS
#include <random>
#include <string>
#endif

namespace tandem::kv {

#ifdef TANDEM_FAULTS

class ReadFaults {
 public:
  ReadFaults(const TransferOptions& options, std::span<const std::byte> region)
      : plan_(options.read_faults), region_(region) {}

  // deliver(bytes): as UcxReads::on_data. Returns what it returned last.
  template <class Deliver>
  bool pass(std::string_view bytes, Deliver deliver) {
    const std::string_view spoiled = spoil(bytes);
    const bool wanted = deliver(spoiled);
    return wanted && was_drawn_ && plan_.kind == ReadFaultPlan::Kind::kTwice ? deliver(spoiled) : wanted;
  }

 private:
  std::string_view spoil(std::string_view bytes);

  const ReadFaultPlan plan_;
  const std::span<const std::byte> region_;
  std::mt19937_64 random_{1};
  bool was_drawn_ = false;         // for the frame that passes
  std::string earlier_, spoiled_;  // the frame before this one; what spoil() gave
};

#else

class ReadFaults {
 public:
  constexpr ReadFaults(const TransferOptions&, std::span<const std::byte>) {}
  template <class Deliver>
  bool pass(std::string_view bytes, Deliver deliver) const {
    return deliver(bytes);
  }
};

#endif

}  // namespace tandem::kv
