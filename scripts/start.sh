#!/usr/bin/env bash
# Behind `npm start`: set the machine up, build, run the demonstration. Arguments go to the demonstration.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec node dist/clustermesh-demo.mjs "$@"
