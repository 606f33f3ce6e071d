#!/usr/bin/env bash
# Train on one machine with several GPUs.
#
# Edit: the variables below; further arguments go to train.py.
# Usage: launch/gpus.sh one      one process that uses all GPUs: the usual way
#        launch/gpus.sh each 4   one process for each of 4 GPUs, which work as one
# Resume: the same command.
set -euo pipefail

CONFIG=${CONFIG:-configs/cifar10.py}
RUN=${RUN:-runs/cifar10}
PORT=${PORT:-12345}
how=${1:-one}

if [ "$how" = one ]; then
  # No variable and no flag is needed: a process uses all devices that it sees.
  exec python train.py --config "$CONFIG" --workdir "$RUN" "${@:2}"
fi

count=$2
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$PORT JAX_NUM_PROCESSES=$count
started=()
# Ctrl-C and SIGTERM reach all; the processes agree on the step to save at.
trap 'kill -TERM "${started[@]}" 2> /dev/null' INT TERM
for ((i = 0; i < count; i++)); do
  CUDA_VISIBLE_DEVICES=$i JAX_PROCESS_ID=$i \
    python train.py --config "$CONFIG" --workdir "$RUN" "${@:3}" &
  started+=($!)
done
status=0
for process in "${started[@]}"; do
  wait "$process" && code=0 || code=$?
  while kill -0 "$process" 2> /dev/null; do  # A signal ends wait early.
    wait "$process" && code=0 || code=$?
  done
  [ "$code" = 0 ] || status=$code
done
exit "$status"
