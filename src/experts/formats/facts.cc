#include "experts/formats/facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "experts/formats/text.h"

namespace tandem::experts {
namespace {

constexpr std::string_view kPlacementKeys[] = {
    "physical_to_logical_map",
    "replica_share",
    "format",
    "version",
    "model",
    "layers",
    "experts",
    "slots",
    "gpus",
    "nodes",
    "groups",
    "phase",
    "window",
    "first_moe_layer",
    "epoch",
    "planned_from",
    "planner",
    "crc32",
    "balancedness",
};
constexpr double kLargestWhole = 0x1p53;

Result<double> number_of(const TorchValue& value, std::string_view key) {
  if (const auto* integer = value.get_if<int64_t>()) return double(*integer);
  if (const auto* number = value.get_if<double>()) return *number;
  const TorchTensor* tensor = value.tensor();
  if (tensor != nullptr && tensor->shape.empty() && tensor->num_elements() == 1) return tensor->number_at(0);
  if (const auto* text = value.get_if<std::string>()) {
    double number = 0;
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
    if (error == std::errc() && end == text->data() + text->size() && std::isfinite(number)) return number;
  }
  return invalid_input(fmt::format("{} should be a number", in_quotes(key)));
}

// Reads keys one after the other; the first fault stays.
class Reader {
 public:
  explicit Reader(const TorchValue::Dict& dict) : dict_(dict) {}

  void number(std::string_view key, double& out) {
    const TorchValue* value = dict_.find(key);
    if (value == nullptr || value->is_none()) return;
    const Result<double> number = number_of(*value, key);
    if (!number) return fail(number.error().message);
    out = *number;
  }
  template <class T>
  void whole(std::string_view key, T& out) {
    double value = double(out);
    number(key, value);
    const double most = std::min(double(std::numeric_limits<T>::max()), kLargestWhole);
    if (value != std::floor(value) || value < 0 || value > most) {
      return fail(fmt::format("{} should be a whole number", in_quotes(key)));
    }
    out = T(value);
  }
  void text(std::string_view key, std::string& out) {
    const TorchValue* value = dict_.find(key);
    if (value == nullptr || value->is_none()) return;
    const auto* text = value->get_if<std::string>();
    if (text == nullptr) return fail(fmt::format("{} should be text", in_quotes(key)));
    out = *text;
  }
  // A size that the file states must be the one it has.
  void size(std::string_view key, int32_t actual) {
    int32_t stated = actual;
    whole(key, stated);
    if (stated != actual) fail(fmt::format("{} says {}, the table has {}", in_quotes(key), stated, actual));
  }
  void fail(std::string message) {
    if (fault_.empty()) fault_ = std::move(message);
  }
  const std::string& fault() const { return fault_; }

 private:
  const TorchValue::Dict& dict_;
  std::string fault_;
};

}  // namespace

Result<FileFacts> read_facts(const TorchValue::Dict& dict, std::string_view format, const ExpertShape& actual) {
  Reader reader(dict);
  FileFacts facts;
  std::string stated(format);
  int64_t version = 1;
  reader.text("format", stated);
  reader.whole("version", version);
  if (stated != format) reader.fail(fmt::format("format {}, not '{}'", in_quotes(stated), format));
  if (version != 1) reader.fail(fmt::format("version {} of the format; this program reads version 1", version));
  reader.size("layers", actual.num_layers);
  reader.size("experts", actual.num_logical);
  if (actual.num_slots > 0) reader.size("slots", actual.num_slots);
  reader.text("model", facts.model);
  reader.text("phase", facts.phase);
  reader.text("planner", facts.planner);
  reader.text("planned_from", facts.planned_from);
  reader.whole("epoch", facts.epoch);
  reader.whole("gpus", facts.num_gpus);
  reader.whole("nodes", facts.num_nodes);
  reader.whole("groups", facts.num_groups);
  reader.whole("first_moe_layer", facts.first_moe_layer);
  reader.number("balancedness", facts.balancedness);
  if (!reader.fault().empty()) return invalid_input(reader.fault());
  const TorchValue* window = dict.find("window");
  if (window == nullptr || window->dict() == nullptr) return facts;
  Reader inner(*window->dict());
  inner.whole("steps", facts.window_steps);
  inner.whole("tokens", facts.window_tokens);
  inner.number("start_unix", facts.window_start_unix);
  inner.number("end_unix", facts.window_end_unix);
  if (!inner.fault().empty()) return invalid_input("'window': " + inner.fault());
  return facts;
}

void add_facts(const FileFacts& facts, std::string_view format, const ExpertShape& actual, TorchValue::Dict& dict) {
  const auto text = [&](const char* key, const std::string& value) {
    if (!value.empty()) dict.set(key, {value});
  };
  const auto whole = [&](const char* key, int64_t value) {
    if (value != 0) dict.set(key, {value});
  };
  dict.set("format", {std::string(format)});
  dict.set("version", {int64_t{1}});
  text("model", facts.model);
  dict.set("layers", {int64_t{actual.num_layers}});
  dict.set("experts", {int64_t{actual.num_logical}});
  whole("slots", actual.num_slots);
  whole("gpus", facts.num_gpus);
  whole("nodes", facts.num_nodes);
  whole("groups", facts.num_groups);
  whole("first_moe_layer", facts.first_moe_layer);
  text("phase", facts.phase);
  whole("epoch", facts.epoch);
  text("planned_from", facts.planned_from);
  text("planner", facts.planner);
  if (facts.balancedness != 0) dict.set("balancedness", {facts.balancedness});
  TorchValue::Dict window;
  if (facts.window_steps != 0) window.set("steps", {facts.window_steps});
  if (facts.window_tokens != 0) window.set("tokens", {facts.window_tokens});
  if (facts.window_start_unix != 0) window.set("start_unix", {facts.window_start_unix});
  if (facts.window_end_unix != 0) window.set("end_unix", {facts.window_end_unix});
  if (!window.keys.empty()) dict.set("window", {std::move(window)});
}

std::string unknown_placement_key(const TorchValue::Dict& dict) {
  for (const TorchValue& key : dict.keys) {
    const auto* text = key.get_if<std::string>();
    if (text == nullptr) return "(not text)";
    if (std::find(std::begin(kPlacementKeys), std::end(kPlacementKeys), *text) == std::end(kPlacementKeys))
      return *text;
  }
  return "";
}

Status check_same_model(const ExpertShape& actual, const ExpertShape& want) {
  const bool same = (want.num_layers == 0 || want.num_layers == actual.num_layers) &&
                    (want.num_logical == 0 || want.num_logical == actual.num_logical);
  if (same) return Ok{};
  return invalid_input(fmt::format("{} layers of {} experts, but the model has {} layers of {}", actual.num_layers,
                                   actual.num_logical, want.num_layers, want.num_logical));
}

}  // namespace tandem::experts
