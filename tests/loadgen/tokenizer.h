// The trained model's tokenizer, loaded once for all tests of a program.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "loadgen/target.h"

namespace tandem::loadgen {

inline std::string tiny_directory() { return std::string(TANDEM_SOURCE_DIR) + "/models/tiny"; }

inline std::shared_ptr<const text::Tokenizer> tiny_tokenizer() {
  static const std::shared_ptr<const text::Tokenizer> tokenizer = [] {
    auto loaded = load_tokenizer(tiny_directory());
    EXPECT_TRUE(loaded) << (loaded ? "" : loaded.error().message);
    return loaded ? *loaded : nullptr;
  }();
  return tokenizer;
}

}  // namespace tandem::loadgen
