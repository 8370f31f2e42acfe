// Comparing what nobody may guess piece by piece: keys and proofs. Pure; any thread.
#pragma once

#include <cstddef>
#include <string_view>

namespace tandem {

// Takes as long wherever the two differ; that their lengths differ may show.
inline bool same_in_constant_time(std::string_view given, std::string_view wanted) {
  volatile unsigned difference = given.size() == wanted.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    const char other = wanted.empty() ? '\0' : wanted[i % wanted.size()];
    difference = difference | static_cast<unsigned char>(given[i] ^ other);
  }
  return difference == 0;
}

}  // namespace tandem
