// The bootstrap fields that routers put into every dialect's body. Pure.
#pragma once

#include <optional>
#include <string>

#include "api/call.h"
#include "api/parse/values.h"

namespace tandem::api {

struct BootstrapFields {
  OneOrMany<std::string> host;
  OneOrMany<std::optional<uint16_t>> port;
  OneOrMany<std::optional<uint64_t>> room;

  // False: key is none of the three.
  Result<bool> read(const std::string& key, Element value);
  // One for each item: a scalar room becomes room + i. Lists of another length are refused.
  void spread(Call& call) const;
};

// A list must have one entry for each prompt.
template <class T>
bool fits(const OneOrMany<T>& field, size_t prompts) {
  return !field.is_list || field.values.size() == prompts;
}

}  // namespace tandem::api
