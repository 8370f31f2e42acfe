// What the tests of this room share: the trained model's tokenizer and its fixtures.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace tandem::text {

inline std::string model_path(const std::string& file) { return TANDEM_SOURCE_DIR "/models/tiny/" + file; }
inline std::string fixture_path(const std::string& file) { return TANDEM_SOURCE_DIR "/tests/data/tiny/" + file; }

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

inline const Tokenizer& tiny_tokenizer() {
  static const std::shared_ptr<const Tokenizer> tokenizer = [] {
    auto loaded = Tokenizer::load(model_path("tokenizer.json"));
    EXPECT_TRUE(loaded.has_value()) << loaded.error().message;
    return *loaded;
  }();
  return *tokenizer;
}

inline std::vector<int32_t> ids_of(simdjson::dom::element list) {
  std::vector<int32_t> ids;
  for (simdjson::dom::element id : list.get_array()) ids.push_back(static_cast<int32_t>(int64_t{id}));
  return ids;
}

}  // namespace tandem::text
