"""Run a job's program in a container of Apptainer: the image that may be used, and the lines of the script."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedh2l_mpi.errors import UserError

# What precedes a command of the script that runs inside.
INSIDE = '"${container[@]}" "$IMAGE" '


def check_image(image: str, is_elsewhere: bool) -> None:
    """Refuse an image that is no file, or that is not there.

    Raises
    ------
    UserError
        If the image is missing here, unless it is on another machine.
    """
    if "://" in image:
        raise UserError(
            f"--container: got {image!r}, must be a file, which all ranks read. "
            f"Fix: apptainer pull image.sif {shlex.quote(image)}, and use image.sif."
        )
    if not image.isprintable() or not image:
        raise UserError(f"--container: got {image!r}, must be one line of printable characters.")
    if not is_elsewhere and not Path(image).exists():
        raise UserError(
            f"--container: {image} does not exist. Fix: build it, as in apptainer build IMAGE jobs/apptainer.def, or "
            "add --elsewhere if it is on another machine."
        )


def absolute_paths(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the absolute paths among a config's settings, such as the folder of its data."""
    return tuple(sorted({text for text in _texts(settings.values()) if text.startswith("/")}))


def _texts(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _texts(value.values())
        elif isinstance(value, list | tuple):
            yield from _texts(value)


def begin(image: str, has_gpus: bool, paths: Iterable[str]) -> str:
    """Return the lines that prepare the container. `show` binds the paths that the program reads or writes."""
    nv = " --nv" if has_gpus else ""
    shown = " ".join(shlex.quote(path) for path in paths)
    return f"""\
IMAGE=${{IMAGE:-{shlex.quote(image)}}}
[ -e "$IMAGE" ] || {{ echo "IMAGE: $IMAGE does not exist" >&2; exit 2; }}
# Python is the one in the image, and paths have the same names inside. Apptainer itself shows the home and /tmp; it
# reads more paths from APPTAINER_BIND.
container=("${{APPTAINER:-apptainer}}" exec{nv} --pwd "$PWD" --bind "$PWD")
# Bind paths, or as much of each as exists, under their own names; also where their links lead.
show() {{
  local path
  for path; do
    for path in "$path" "$(realpath -m -- "$path")"; do
      case $path in /*) ;; *) path=$PWD/$path ;; esac
      while [ ! -e "$path" ]; do path=${{path%/*}}; done
      case $path/ in / | // | "$PWD"/*) continue ;; esac
      case " ${{container[*]}} " in *" $path "*) continue ;; esac
      case $path in *[,:]*) echo "$path: Apptainer binds no path with a comma or colon" >&2; exit 2 ;; esac
      container+=(--bind "$path")
    done
  done
}}
show {shown}
[ -z "${{FEDH2L_DATA:-}}" ] || show "$FEDH2L_DATA"
""".replace("\nshow \n", "\n")
