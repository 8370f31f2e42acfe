#!/usr/bin/env bash
# Splits the job's nodes into groups and writes who listens where to $RUN_DIR/nodes.sh, which the other scripts read.
cd "$(dirname "$0")" && source ./lib.sh
[[ -n ${SLURM_JOB_ID:-} ]] || die "run this inside a job (1.salloc.sh, or tandem.sbatch)"
((PREFILL_GROUPS >= 1 && PREFILL_NODES >= 1 && DECODE_NODES >= 1)) || die "every group has a node"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
need=$((PREFILL_GROUPS * PREFILL_NODES + DECODE_NODES))
((${#nodes[@]} >= need)) || die "$PREFILL_GROUPS prefill groups of $PREFILL_NODES nodes and $DECODE_NODES decode nodes" \
  "need $need nodes; the job has ${#nodes[@]}"
mkdir -p "$RUN_DIR/logs" "$RUN_DIR/experts" "$RUN_DIR/profile"

# The address by which Slurm itself reaches a node; nodes that share one get ports of their own.
declare -A address port seen
for node in "${nodes[@]}"; do
  address[$node]=$(scontrol --oneliner show node "$node" | grep --only-matching 'NodeAddr=[^ ]*' | cut --delimiter='=' --fields=2)
  index=${seen[${address[$node]}]:-0}
  port[$node]=$((BASE_PORT + 10 * index))
  seen[${address[$node]}]=$((index + 1))
done

# take COUNT: the next COUNT nodes, joined by commas, in `taken`; the first of them in `first`.
next=0
take() {
  first=${nodes[next]}
  taken=$(IFS=,; echo "${nodes[*]:next:$1}")
  next=$((next + $1))
}

{
  echo "FIRST_NODE=${nodes[0]}"
  echo "ROUTER_URL=http://${address[${nodes[0]}]}:$ROUTER_PORT"
  echo "declare -gA PORT_OF"
  for node in "${nodes[@]}"; do echo "PORT_OF[$node]=${port[$node]}"; done
  for ((group = 0; group < PREFILL_GROUPS; ++group)); do
    take "$PREFILL_NODES"
    echo "PREFILL_NODE_LIST[$group]=$taken"
    echo "PREFILL_URL[$group]=http://${address[$first]}:${port[$first]}"
    echo "PREFILL_KV_PORT[$group]=$((port[$first] + 1))"
    echo "PREFILL_MEETING[$group]=${address[$first]}:$((port[$first] + 2))"
  done
  take "$DECODE_NODES"
  echo "DECODE_NODE_LIST=$taken"
  echo "DECODE_URL=http://${address[$first]}:${port[$first]}"
  echo "DECODE_MEETING=${address[$first]}:$((port[$first] + 2))"
} >"$RUN_DIR/nodes.sh"
cat "$RUN_DIR/nodes.sh"
