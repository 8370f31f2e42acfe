// Stands in for libFuzzer: runs the target over every file named (or found in a folder named) on the command line, and
// over a fixed number of seeded mutations of each: cut short, one byte changed, a stretch repeated.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
constexpr int kMutationsPerFile = 200;

// An exact-size copy, so that the address sanitizer sees a read past the end.
void run(const Bytes& input) {
  Bytes copy(input.begin(), input.end());
  copy.shrink_to_fit();
  LLVMFuzzerTestOneInput(copy.data(), copy.size());
}

Bytes mutate(Bytes bytes, std::mt19937_64& random) {
  if (bytes.empty()) return {uint8_t(random())};
  const size_t at = random() % bytes.size();
  switch (random() % 3) {
    case 0: bytes.resize(at); break;
    case 1: bytes[at] ^= uint8_t(1 + random() % 255); break;
    default: {
      const size_t length = std::min<size_t>(bytes.size() - at, 1 + random() % 64);
      const Bytes stretch(bytes.begin() + std::ptrdiff_t(at), bytes.begin() + std::ptrdiff_t(at + length));
      bytes.insert(bytes.begin() + std::ptrdiff_t(at), stretch.begin(), stretch.end());
    }
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    if (!std::filesystem::is_directory(argv[i])) {
      files.emplace_back(argv[i]);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const auto& path : files) {
    std::ifstream in(path, std::ios::binary);
    const Bytes bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    run(bytes);
    std::mt19937_64 random(bytes.size());
    for (int i = 0; i < kMutationsPerFile; ++i) run(mutate(bytes, random));
  }
  std::printf("replayed %zu files, %d mutations of each\n", files.size(), kMutationsPerFile);
  return files.empty() ? 1 : 0;  // an empty corpus proves nothing
}
