#!/usr/bin/env bash
# Allocates the nodes and opens a shell in the job; further flags go to salloc. tandem.sbatch does the same unattended.
cd "$(dirname "$0")" && source ./lib.sh
exec salloc --job-name=tandem --nodes=$((PREFILL_GROUPS * PREFILL_NODES + DECODE_NODES)) --ntasks-per-node=1 --exclusive "$@"
