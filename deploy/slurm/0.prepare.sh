#!/usr/bin/env bash
# Container and model, before a job (the container's unpacking without pyxis: inside one).
cd "$(dirname "$0")" && source ./lib.sh

if [[ -n $CONTAINER_IMAGE ]]; then
  command -v enroot >/dev/null || die "CONTAINER_IMAGE is set, but enroot is not installed"
  if [[ ! -e $CONTAINER_IMAGE ]]; then
    [[ -n $CONTAINER_URI ]] || die "$CONTAINER_IMAGE does not exist, and CONTAINER_URI does not say what to make it from"
    enroot import --output "$CONTAINER_IMAGE" "$CONTAINER_URI"
  fi
  if ! has_pyxis && [[ -n ${SLURM_JOB_ID:-} ]]; then
    srun --ntasks-per-node=1 --overlap enroot create --force --name tandem "$CONTAINER_IMAGE"
  fi
fi

if [[ -n $MODEL_PATH && ! -r $MODEL_PATH/config.json && -z $CONTAINER_IMAGE ]]; then
  die "no model at $MODEL_PATH; fetch it where all nodes see it, e.g.:
  huggingface-cli download $MODEL_REPOSITORY --local-dir $MODEL_PATH"
fi
echo "prepared: container ${CONTAINER_IMAGE:-none}, model ${MODEL_PATH:-embedded}"
