"""`pack`: make one HDF5 file from folders of photographs."""

from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.cli.options import new_parser


@dataclass(frozen=True)
class PackCommand:
    """Make one file of a folder of photographs."""

    root: Path
    out: Path
    layout: str
    side: int
    grey: bool
    workers: int | None
    strict: bool
    quiet: bool


def parse(words: list[str], speaks: bool) -> PackCommand:
    meaning = (
        "Decode, resize and crop the photographs of ROOT/<domain>/<class>/ into one HDF5 file, for data.name: pack.\n"
        "Unreadable ones are skipped and listed. OUT appears only when it is complete."
    )
    parser = new_parser("python -m fedh2l_mpi pack", meaning, speaks)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of <domain>/<class>/*.{jpg,jpeg,png,bmp,webp}")
    parser.add_argument("out", type=Path, metavar="OUT", help="HDF5 file to make; must not exist")
    parser.add_argument("--layout", default="domains", metavar="NAME", help="domains, the only one there is (default)")
    parser.add_argument("--side", type=int, default=224, metavar="S", help="side of the square images [pixels] (224)")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: the CPUs at hand)")
    parser.add_argument("--strict", action="store_true", help="end at the first unreadable picture, with no file")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = parser.parse_args(words)
    return PackCommand(**vars(options))


def execute(command: PackCommand) -> int:
    """Write the file and print what is in it; the exit code."""
    from fedh2l_mpi.data import pack_writer

    with pack_writer.progress_bar(command.quiet) as progress:
        packed = pack_writer.pack(
            command.root,
            command.out,
            command.layout,
            command.side,
            command.grey,
            command.workers,
            command.strict,
            progress,
        )
    if not command.quiet:
        print(packed.report())
    return 0
