#!/usr/bin/env bash
# Runs an experiment in a folder that is kept in a bucket: takes what is there, goes on
# from it, and copies the folder back each minute and at the end. For one host.
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
trap 'kill -TERM "$run"' TERM INT # it saves and ends; a signal ends `wait` before
while kill -0 "$run" 2> /dev/null; do
  wait "$run" || true
done
status=0
wait "$run" || status=$?
kill "$copier"
copy
exit "$status"
