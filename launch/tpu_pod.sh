#!/usr/bin/env bash
# Train on a Cloud TPU slice of one or many hosts: the same command on every worker.
#
# The hosts find each other by the metadata of the slice; no flag or variable is needed.
# Edit: the variables below. RUN lies where all workers see it, such as on Filestore or
# another NFS mount (docs/scaling.md says what works in a bucket). PROJECT is a clone of the
# repository on every worker, with an environment in .venv (docs/install.md).
# Usage: TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh   (in tmux: it lasts as the run)
# Resume: the same command, also after the slice was taken away and made again.
set -euo pipefail

TPU=${TPU:?the name of the slice}
ZONE=${ZONE:?the zone of the slice}
PROJECT=${PROJECT:-diffusion_jax}
CONFIG=${CONFIG:-configs/cifar10.py}
RUN=${RUN:-/mnt/shared/runs/cifar10}

exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd $PROJECT && .venv/bin/python train.py --config $CONFIG --workdir $RUN $*"
