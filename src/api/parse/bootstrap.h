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
  // One for each item: a scalar room becomes room + i. A list may also have one entry for each of call.n answers of an
  // item, as SGLang's router sends it for chat; an item's first entry then stands for all. Other lengths are refused.
  void spread(Call& call) const;
};

// A list must have one entry for each prompt, or for each of its n answers.
template <class T>
bool fits(const OneOrMany<T>& field, size_t prompts, size_t n = 1) {
  return !field.is_list || field.values.size() == prompts || field.values.size() == prompts * n;
}

}  // namespace tandem::api
