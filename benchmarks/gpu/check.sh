#!/usr/bin/env bash
# Check the program on a machine with a GPU: install the wheels it lacks into a temporary folder, then run the check.
#   bash benchmarks/gpu/check.sh [options of benchmarks.gpu.check]
# PYTHON  the interpreter that has PyTorch (python3)
# WHEELS  the folder that wheels.sh filled (.wheels); it may be absent
# OUT     the folder for the results (gpu-check)
set -euo pipefail
python=${PYTHON:-python3}
wheels=${WHEELS:-.wheels}
[ -d fedh2l_mpi ] || { echo "fedh2l_mpi/ is not here. Start this script in the repository's root." >&2; exit 2; }
export OUT=${OUT:-gpu-check}
mkdir -p "$OUT"

if compgen -G "$wheels/*.whl" >/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  # pip --target drops a wheel's lib/ folder, where MPICH keeps its library; so MPICH is unpacked below.
  mapfile -t packages < <(find "$wheels" -type f -name '*.whl' ! -name 'mpich-*' | sort)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --root-user-action=ignore --upgrade --target "$site/python" "${packages[@]}"
  export PYTHONPATH="$site/python${PYTHONPATH:+:$PYTHONPATH}"
  if compgen -G "$wheels/mpich-*.whl" >/dev/null; then
    "$python" - "$wheels"/mpich-*.whl "$site/mpi" <<'PYTHON'
import pathlib
import sys
import zipfile

archive, target = sys.argv[1:]
with zipfile.ZipFile(archive) as wheel:
    for name in wheel.namelist():
        _, _, relative = name.partition(".data/data/")
        if relative and not name.endswith("/"):
            path = pathlib.Path(target, relative)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wheel.read(name))
            path.chmod(0o755)
PYTHON
    export PATH="$site/mpi/bin:$PATH" MPIEXEC="$site/mpi/bin/mpirun"
    # mpi4py would look next to the interpreter, where this MPICH is not.
    export MPI4PY_LIBMPI="$site/mpi/lib/libmpi.so.12"
  fi
fi
"$python" -m benchmarks.gpu.check "$@"
