#!/usr/bin/env bash
# Runs an experiment whose run folder is kept in a bucket, on one host. It copies the
# bucket's files to the folder, resumes from them, and copies the folder back to the
# bucket every minute and at the end.
#   tpu/kept.sh gs://BUCKET/one runs/one experiments.train --quick
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bucket=$1
folder=$2
shift 2

copy() {
  gcloud storage rsync --recursive --delete-unmatched-destination-objects \
    "$folder" "$bucket"
}

if gcloud storage ls "$bucket/config.json" > /dev/null; then
  mkdir -p "$folder"
  gcloud storage rsync --recursive "$bucket" "$folder"
fi
(
  while sleep 60; do
    copy || echo "kept.sh: $bucket was not written; trying again" >&2
  done
) &
copier=$!
tpu/run.sh "$@" --run-dir "$folder" --resume &
run=$!
# After a signal the run saves and ends. The signal also interrupts `wait`, hence the loop.
trap 'kill -TERM "$run"' TERM INT
while kill -0 "$run" 2> /dev/null; do
  wait "$run" || true
done
status=0
wait "$run" || status=$?
kill "$copier"
copy
exit "$status"
