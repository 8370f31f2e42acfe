#include "model/registry.h"

#include "model/arch/deepseek.h"

namespace tandem::model {

namespace {

// Kimi-K2 and Moonlight call themselves DeepseekV3ForCausalLM, V2-Lite DeepseekV2ForCausalLM.
constexpr Architecture kArchitectures[] = {
    {"DeepseekV2ForCausalLM",
     {1, 1, "softmax", "greedy", false, 1.0f},
     deepseek_tensors,
     build_deepseek,
     plan_deepseek_memory},
    {"DeepseekV3ForCausalLM",
     {8, 4, "sigmoid", "noaux_tc", true, 2.5f},
     deepseek_tensors,
     build_deepseek,
     plan_deepseek_memory},
};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return &architecture;
  }
  return nullptr;
}

std::string supported_architectures() {
  std::string names;
  for (const Architecture& architecture : kArchitectures) {
    if (!names.empty()) names += ", ";
    names += architecture.name;
  }
  return names;
}

}  // namespace tandem::model
