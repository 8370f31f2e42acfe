# shellcheck shell=bash
# Settings of the scripts in this folder. Each may be set in the environment instead, and wins there:
#   PREFILL_GROUPS=3 MODEL_PATH=/models/DeepSeek-R1 sbatch --nodes=18 tandem.sbatch
# shellcheck disable=SC2034  # used by the scripts that source this file

# Shape. The job needs PREFILL_GROUPS * PREFILL_NODES + DECODE_NODES nodes.
PREFILL_GROUPS=${PREFILL_GROUPS:-1} # 1 to 3
PREFILL_NODES=${PREFILL_NODES:-2}   # of one group
DECODE_NODES=${DECODE_NODES:-12}
RANKS_PER_NODE=${RANKS_PER_NODE:-4} # devices of a node

# Program and model. Without MODEL_PATH the embedded model is served. Both are paths inside the container if there is one.
TANDEM=${TANDEM:-tandem}
MODEL_PATH=${MODEL_PATH:-}
MODEL_REPOSITORY=${MODEL_REPOSITORY:-deepseek-ai/DeepSeek-R1} # only named in the hint of 0.prepare.sh

# Container. Empty: none. Else a squashfs file; made from CONTAINER_URI by 0.prepare.sh if it is not there yet.
CONTAINER_IMAGE=${CONTAINER_IMAGE:-}
CONTAINER_URI=${CONTAINER_URI:-} # docker://registry#name:tag, as enroot writes it
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-$PWD:$PWD}

# Ports. A node uses BASE_PORT (HTTP), +1 (KV, prefill) and +2 (where a group's nodes meet); nodes that share a host take
# the next ten each.
BASE_PORT=${BASE_PORT:-30000}
ROUTER_PORT=${ROUTER_PORT:-8000}

# Flags of the servers, split at spaces. The values are the recipe's; the small test sets its own.
COMMON_FLAGS=${COMMON_FLAGS:---decode-log-interval 1 --watchdog-timeout 1000000 --moe-dense-tp-size 1 --enable-metrics}
PREFILL_FLAGS=${PREFILL_FLAGS:---deepep-mode normal --disable-radix-cache --enable-two-batch-overlap --ep-num-redundant-experts 32 --ep-dispatch-algorithm dynamic}
DECODE_FLAGS=${DECODE_FLAGS:---deepep-mode low_latency --ep-num-redundant-experts 32 --expert-distribution-recorder-mode stat --expert-distribution-recorder-buffer-size -1}
IB_DEVICE=${IB_DEVICE:-} # e.g. mlx5_0,mlx5_1,mlx5_3: one list for all that talks between nodes
BENCH_FLAGS=${BENCH_FLAGS:---dataset-name random --random-range-ratio 1 --random-input-len 2000 --random-output-len 100 --num-prompts 100000}

# Workflow.
SLOW_DOWN_S=${SLOW_DOWN_S:-180}     # sleep before each decode step while caches pile up
SATURATE_S=${SATURATE_S:-1800}      # how long to let them
SETTLE_S=${SETTLE_S:-240}           # from the end of the slow-down to the profile
PROFILE_STEPS=${PROFILE_STEPS:-5}
READY_TIMEOUT_S=${READY_TIMEOUT_S:-3600}
SRUN_FLAGS=${SRUN_FLAGS:-} # more flags of every srun, e.g. --gpus-per-node=4 --mpi=none

# Logs, dumps and traces of a job; on a file system that all nodes see.
RUN_DIR=${RUN_DIR:-$PWD/run-${SLURM_JOB_ID:-none}}
