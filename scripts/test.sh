#!/usr/bin/env bash
# Behind `npm test`: set the machine up, then check, build and run every test. Arguments choose test files (test.mjs).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh --no-build
exec node scripts/test.mjs "$@"
