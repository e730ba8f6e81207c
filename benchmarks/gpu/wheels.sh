#!/usr/bin/env bash
# Download the packages that a machine with a GPU but without internet lacks.
#   bash benchmarks/gpu/wheels.sh [MNIST_FOLDER]
# Fills .wheels/ with the versions of .ci/constraints.txt, for Python 3.12 on Linux x86-64. With a folder of MNIST's IDX
# files, it also fills .mnist/. Both folders are ignored by git.
set -euo pipefail
[ -f .ci/constraints.txt ] || { echo ".ci/constraints.txt is not here. Start this script in the repository's root." >&2; exit 2; }
# README.md lists what such a machine is expected to have. mpi4py is included because it must fit this MPICH.
needed=(pydantic pydantic_core annotated-types typing-inspection typing_extensions h5netcdf mpi4py mpich)
pins=()
for name in "${needed[@]}"; do
  pins+=("$(grep -i -E "^${name//[-_]/[-_]}==" .ci/constraints.txt)") || { echo "$name: not in .ci/constraints.txt" >&2; exit 1; }
done

platforms=()
for version in 2_34 2_31 2_28 2_27 2_17 2014 1; do
  case $version in 2_*) platforms+=(--platform "manylinux_${version}_x86_64") ;; *) platforms+=(--platform "manylinux${version}_x86_64") ;; esac
done
rm -rf .wheels
python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp "${platforms[@]}" -d .wheels "${pins[@]}"

# Every wheel is complete, and everything it requires is among them or expected on the machine.
python3 - "${#needed[@]}" .wheels/*.whl <<'PYTHON'
import email
import re
import sys
import zipfile

expected, *paths = sys.argv[1:]
if len(paths) != int(expected):
    sys.exit(f"expected {expected} wheels, got {len(paths)}: {' '.join(paths)}")


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


present, required = {"numpy", "packaging"}, {}
for path in paths:
    wheel = zipfile.ZipFile(path)
    if damaged := wheel.testzip():
        sys.exit(f"{path}: {damaged} is damaged")
    entry = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(entry))
    present.add(plain(metadata["Name"]))
    for requirement in metadata.get_all("Requires-Dist", []):
        if "extra ==" not in requirement:
            required[plain(re.match(r"[\w.-]+", requirement)[0])] = path
missing = {name: path for name, path in required.items() if name not in present}
sys.exit(f"required, but not downloaded: {missing}" if missing else 0)
PYTHON

folders=(.wheels)
if [ $# -gt 0 ]; then
  rm -rf .mnist
  cp -r "$1" .mnist
  folders+=(.mnist)
fi
ls -l .wheels | awk 'NR > 1 {printf "%10d  %s\n", $5, $9}'
echo "Copy the repository with ${folders[*]} ($(du -smc "${folders[@]}" | tail -1 | cut -f1) MiB) to the machine."
