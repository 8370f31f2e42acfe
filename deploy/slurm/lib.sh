# shellcheck shell=bash
# What the scripts here share. Sourced after `cd` to this folder; needs a job (sbatch or salloc) for everything but die.
set -euo pipefail
# shellcheck source=config.sh
source ./config.sh

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# Reads what 2.nodes.sh wrote.
load_nodes() {
  [[ -r $RUN_DIR/nodes.sh ]] || die "$RUN_DIR/nodes.sh is missing: run 2.nodes.sh first, in the same job"
  # shellcheck source=/dev/null
  source "$RUN_DIR/nodes.sh"
}

has_pyxis() { srun --help | grep -q -- --container-image; }

# run_on NAME NODE[,NODE...] LOG COMMAND...: one task on each node, in the container if there is one.
# LOG: a file pattern of srun (%n: number of the node in the step), or "" for this terminal.
run_on() {
  local name=$1 list=$2 log=$3
  shift 3
  local commas=${list//[^,]/} flags=() more=() inside=()
  local count=$((${#commas} + 1))
  flags=(--job-name="$name" --nodelist="$list" --nodes="$count" --ntasks="$count" --ntasks-per-node=1 --overlap)
  [[ -z $log ]] || flags+=(--output="$log" --error="$log" --open-mode=append)
  read -ra more <<<"$SRUN_FLAGS"
  flags+=("${more[@]}")
  if [[ -n $CONTAINER_IMAGE ]] && has_pyxis; then
    flags+=(--container-image="$CONTAINER_IMAGE" --container-mounts="$CONTAINER_MOUNTS" --container-workdir="$PWD")
  elif [[ -n $CONTAINER_IMAGE ]]; then
    inside=(enroot start --root --rw --mount "${CONTAINER_MOUNTS%%,*}" tandem)
  fi
  srun "${flags[@]}" "${inside[@]}" "$@"
}

# client COMMAND...: a command of tandem on the first node, with its output here.
client() { run_on "client-$1" "$FIRST_NODE" "" "$TANDEM" "$@"; }

# launch_group ROLE GROUP NODE[,NODE...]: the servers of one group, in the background.
launch_group() {
  local role=$1 group=$2 list=$3 name=$1
  [[ $role == decode ]] || name=${role}_$group
  run_on "$name" "$list" "$RUN_DIR/logs/launch_server_${name}_node_rank_%n.log" ./serve.sh "$role" "$group" &
  echo "$name on $list: logs in $RUN_DIR/logs/launch_server_${name}_node_rank_*.log"
}

# wait_ready NAME URL: until it answers that it is healthy.
wait_ready() {
  local name=$1 url=$2 begin=$SECONDS deadline=$((SECONDS + READY_TIMEOUT_S))
  until curl --silent --fail --output /dev/null --max-time 5 "$url/health"; do
    ((SECONDS < deadline)) || die "$name ($url) is not ready after $READY_TIMEOUT_S s; see $RUN_DIR/logs"
    # Slurm lists a step some moments after it was asked for.
    ((SECONDS - begin < 20)) || steps | grep -q " $name\$" || die "$name has ended; see $RUN_DIR/logs"
    sleep 1
  done
  echo "$name is ready at $url"
}

# Running steps of this job, a line each: "STEP NAME".
steps() { squeue --steps --noheader --jobs="$SLURM_JOB_ID" --format='%i %j'; }
