// What Slurm tells a task about its step, for `tandem launch_server --slurm`: pure, from variables that
// app/environment.cc has read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "app/flags.h"
#include "base/result.h"

namespace tandem::app {

// As Slurm set them; none: not set. What belongs to the step goes before what belongs to the whole job.
struct SlurmVariables {
  std::optional<std::string> node_id;    // SLURM_NODEID: of this task's node within the step
  std::optional<std::string> num_nodes;  // SLURM_STEP_NUM_NODES, else SLURM_NNODES
  std::optional<std::string> num_tasks;  // SLURM_STEP_NUM_TASKS, else SLURM_NTASKS
  std::optional<std::string> node_list;  // SLURM_STEP_NODELIST, else SLURM_JOB_NODELIST
  std::optional<std::string> job_id;     // SLURM_JOB_ID
  std::optional<std::string> step_id;    // SLURM_STEP_ID
};

// "gpu[001-004,7],login" as its names, in order. Zeros in front of a range's first number are kept; a name may have
// several brackets. Errors: kInvalidInput with the place, and more than 65,536 names.
Result<std::vector<std::string>> expand_node_list(std::string_view list);

// A port that every node of a step derives alike and that another step of the job, or the next job, does not: in
// [20000, 28192), below the ports that Linux hands out by itself.
uint16_t slurm_meeting_port(int64_t job_id, int64_t step_id);

// Sets --nnodes, --node-rank, --dist-init-addr (first node of the step; ":PORT" keeps a given port) and --host
// (0.0.0.0: other nodes have to reach this one) where the command line has not. Errors: a variable that is needed and
// not there or makes no sense, more or fewer tasks than nodes.
Status apply_slurm(const SlurmVariables& slurm, FlagValues& flags);

}  // namespace tandem::app
