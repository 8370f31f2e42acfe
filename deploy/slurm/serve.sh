#!/usr/bin/env bash
# serve.sh ROLE GROUP: one node of a group; srun starts it on each. Rank and number of nodes come from Slurm (--slurm).
cd "$(dirname "$0")" && source ./lib.sh
load_nodes
role=$1 group=$2
port=${PORT_OF[$SLURMD_NODENAME]}
export SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR=$RUN_DIR/experts SGLANG_TORCH_PROFILER_DIR=$RUN_DIR/profile

if [[ $role == prefill ]]; then
  num_nodes=$PREFILL_NODES meeting=${PREFILL_MEETING[group]}
  read -ra own <<<"$PREFILL_FLAGS"
  own+=(--disaggregation-bootstrap-port $((port + 1)))
else
  num_nodes=$DECODE_NODES meeting=$DECODE_MEETING
  read -ra own <<<"$DECODE_FLAGS"
fi
ranks=$((num_nodes * RANKS_PER_NODE))
read -ra common <<<"$COMMON_FLAGS"
flags=(--slurm --dist-init-addr "$meeting" --port "$port" --disaggregation-mode "$role")
flags+=(--tp-size "$ranks" --dp-size "$ranks" --enable-dp-attention --enable-dp-lm-head --moe-a2a-backend deepep)
[[ -z $MODEL_PATH ]] || flags+=(--model-path "$MODEL_PATH")
[[ -z $IB_DEVICE ]] || flags+=(--disaggregation-ib-device "$IB_DEVICE")
exec "$TANDEM" launch_server "${flags[@]}" "${common[@]}" "${own[@]}"
