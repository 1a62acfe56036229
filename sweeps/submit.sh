#!/bin/sh
# Submit a sweep or comparison to a lab as a bare Ray job; edit it as you like.
#
#   eval "$(stoplab env)"
#   sweeps/submit.sh sweeps/configs/noise_by_masking.yaml [--set search.seed=1]...
#
# The working tree travels with the job (see .rayignore), so what you edited is what runs. Results
# lie in the lab's home, and in its MLflow.
set -eu
cd "$(dirname "$0")/.."
exec ray job submit --working-dir . \
  --runtime-env-json '{"env_vars": {"PYTHONPATH": "platform:trainers:sweeps:api"}}' \
  -- python -m stoplab_sweeps.main "$@"
