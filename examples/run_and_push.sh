#!/usr/bin/env bash
# Run the pipeline and bring what came out home: the outs to the DVC remote, and with a git remote
# that may be pushed to, the experiment NAME, which `dvc exp pull origin NAME` fetches elsewhere.
#   bash examples/run_and_push.sh NAME
# A run that was killed is continued by the same command (docs/nothing-is-lost.md).
set -euo pipefail
name=${1:?wanted a name for the experiment, such as run-1}
cd "$(dirname "$0")/.."

make .venv/installed
source .venv/bin/activate
export DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true

if [ -z "$(dvc config core.remote || true)" ]; then
  echo "error: no default DVC remote, so the results would stay here: dvc remote add -d store URL" >&2
  exit 1
fi
dvc pull --run-cache --allow-missing # what was computed elsewhere is not computed again
simple-llama check
dvc repro
dvc push --run-cache
if git remote get-url origin >/dev/null 2>&1; then
  dvc exp save --force --name "$name"
  dvc exp push origin "$name"
  echo "elsewhere: dvc exp pull origin $name && dvc exp apply $name"
else
  echo "no git remote named origin: bring dvc.lock and reports/ home yourself, then dvc pull"
fi
