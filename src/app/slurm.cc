#include "app/slurm.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace tandem::app {
namespace {

constexpr size_t kMostNodes = 65536;
constexpr int64_t kFirstPort = 20000, kNumPorts = 8192, kStepsPerJob = 16;

struct Range {
  uint64_t first = 0, last = 0;
  size_t width = 0;  // digits of the first number: names are padded to it
};

class NodeListReader {
 public:
  explicit NodeListReader(std::string_view list) : list_(list) {}

  Result<std::vector<std::string>> read() {
    do {
      RETURN_IF_ERROR(read_name());
    } while (take(','));
    if (at_ != list_.size()) return wrong("a ',' or the end was wanted");
    return std::move(names_);
  }

 private:
  bool take(char wanted) {
    if (at_ == list_.size() || list_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  Error wrong(std::string_view what) const {
    return invalid_input(fmt::format("node list '{}': {} at character {}", list_, what, at_ + 1));
  }

  // One name with its brackets; `names` grows by all that it stands for.
  Status read_name() {
    std::vector<std::string> grown = {""};
    const size_t begin = at_;
    while (at_ < list_.size() && list_[at_] != ',' && list_[at_] != ']') {
      if (take('[')) {
        ASSIGN_OR_RETURN(const std::vector<Range> ranges, read_ranges());
        RETURN_IF_ERROR(multiply(grown, ranges));
      } else {
        for (std::string& name : grown) name.push_back(list_[at_]);
        ++at_;
      }
    }
    if (at_ == begin) return wrong("a name was wanted");
    if (names_.size() + grown.size() > kMostNodes) return wrong("too many names");
    names_.insert(names_.end(), grown.begin(), grown.end());
    return Ok{};
  }

  Result<std::vector<Range>> read_ranges() {
    std::vector<Range> ranges;
    do {
      Range range;
      const size_t begin = at_;
      ASSIGN_OR_RETURN(range.first, read_number());
      range.width = at_ - begin;
      range.last = range.first;
      if (take('-')) {
        ASSIGN_OR_RETURN(range.last, read_number());
      }
      if (range.last < range.first) return wrong("the range before runs backwards");
      if (range.last - range.first >= kMostNodes) return wrong("the range before is too long");
      ranges.push_back(range);
    } while (take(','));
    if (!take(']')) return wrong("a ']' was wanted");
    return ranges;
  }

  Result<uint64_t> read_number() {
    uint64_t number = 0;
    const auto [stop, error] = std::from_chars(list_.data() + at_, list_.data() + list_.size(), number);
    if (error != std::errc()) return wrong("a number was wanted");
    at_ = size_t(stop - list_.data());
    return number;
  }

  Status multiply(std::vector<std::string>& names, const std::vector<Range>& ranges) const {
    size_t count = 0;
    for (const Range& range : ranges) count += size_t(range.last - range.first) + 1;
    if (names.size() * count > kMostNodes) return wrong("too many names before");
    std::vector<std::string> grown;
    for (const std::string& name : names) {
      for (const Range& range : ranges) {
        for (uint64_t number = range.first; number <= range.last; ++number) {
          grown.push_back(fmt::format("{}{:0{}}", name, number, range.width));
        }
      }
    }
    names = std::move(grown);
    return Ok{};
  }

  const std::string_view list_;
  size_t at_ = 0;
  std::vector<std::string> names_;
};

Result<int64_t> number_of(const std::optional<std::string>& text, const char* name) {
  if (!text) return invalid_input(fmt::format("--slurm: {} is not set: start it with srun, or say it by flags", name));
  int64_t number = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, number);
  if (error != std::errc() || stop != end || number < 0) {
    return invalid_input(fmt::format("--slurm: {}: wanted a number, got '{}'", name, *text));
  }
  return number;
}

Result<int64_t> nodes_of_step(const SlurmVariables& slurm) {
  ASSIGN_OR_RETURN(const int64_t nodes, number_of(slurm.num_nodes, "SLURM_NNODES"));
  ASSIGN_OR_RETURN(const int64_t tasks, number_of(slurm.num_tasks, "SLURM_NTASKS"));
  if (nodes != tasks) {
    return invalid_input(fmt::format(
        "--slurm: one task per node is wanted (srun --ntasks-per-node=1), Slurm started {} on {} nodes", tasks, nodes));
  }
  return nodes;
}

// given: what --dist-init-addr says: nothing, or ":PORT".
Result<std::string> meeting_address(const SlurmVariables& slurm, const std::string& given, int64_t num_nodes) {
  if (!slurm.node_list) return invalid_input("--slurm: SLURM_STEP_NODELIST is not set: start it with srun");
  ASSIGN_OR_RETURN(const std::vector<std::string> names, expand_node_list(*slurm.node_list));
  if (int64_t(names.size()) < num_nodes) {
    return invalid_input(
        fmt::format("--slurm: {} nodes, but the node list '{}' names {}", num_nodes, *slurm.node_list, names.size()));
  }
  if (!given.empty()) return names[0] + given;
  ASSIGN_OR_RETURN(const int64_t job, number_of(slurm.job_id, "SLURM_JOB_ID"));
  ASSIGN_OR_RETURN(const int64_t step, number_of(slurm.step_id, "SLURM_STEP_ID"));
  return fmt::format("{}:{}", names[0], slurm_meeting_port(job, step));
}

}  // namespace

Result<std::vector<std::string>> expand_node_list(std::string_view list) { return NodeListReader(list).read(); }

uint16_t slurm_meeting_port(int64_t job_id, int64_t step_id) {
  // 16 steps in a row of one job, and 512 jobs in a row, get ports of their own.
  const int64_t number = job_id % kNumPorts * kStepsPerJob + step_id % kStepsPerJob;
  return uint16_t(kFirstPort + number % kNumPorts);
}

Status apply_slurm(const SlurmVariables& slurm, FlagValues& flags) {
  if (!flags.given("nnodes")) {
    ASSIGN_OR_RETURN(const int64_t nodes, nodes_of_step(slurm));
    flags.set("nnodes", nodes);
  }
  if (!flags.given("node_rank")) {
    ASSIGN_OR_RETURN(const int64_t node, number_of(slurm.node_id, "SLURM_NODEID"));
    flags.set("node_rank", node);
  }
  if (!flags.given("host")) flags.set("host", "0.0.0.0");
  const std::string given = flags.has("dist_init_addr") ? flags.text("dist_init_addr") : "";
  if (flags.integer("nnodes") > 1 && (given.empty() || given[0] == ':')) {
    ASSIGN_OR_RETURN(const std::string address, meeting_address(slurm, given, flags.integer("nnodes")));
    flags.set("dist_init_addr", json::Value(std::string_view(address)));
  }
  return Ok{};
}

}  // namespace tandem::app
