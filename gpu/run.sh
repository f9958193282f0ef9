#!/usr/bin/env bash
# Runs the suite of this bundle, and fails where there is no GPU. Arguments go to the suite: --python PATH.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The system's own CUDA comes first; what is here are libraries that link, and do nothing that the suite needs.
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$here/lib"
export NIXL_PREFIX="$here/nixl/.nixl_cu13.mesonpy.libs"

if ! "$here/bin/gpu-suite" --help >/dev/null; then
    echo "NO GPU: the suite does not start; its loader's message is above. CUDA's driver (libcuda.so.1) comes with a GPU." >&2
    exit 1
fi
exec "$here/bin/gpu-suite" run "$@"
