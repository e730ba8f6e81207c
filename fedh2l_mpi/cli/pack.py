"""`pack`: make one HDF5 file from folders of photographs, or from arrays."""

import argparse
from pathlib import Path

from fedh2l_mpi.cli.command import Command, Context
from fedh2l_mpi.cli.options import Parser
from fedh2l_mpi.runtime.terminal import say

MEANING = """\
Decode, resize and crop the photographs below ROOT into one HDF5 file, for
`data.name: pack`. Their folders are, by --layout:

  domains        ROOT/<domain>/<class>/
  train_test     ROOT/train/<class>/ and ROOT/test/<class>/ (or val)
  split_domains  ROOT/<domain>/train/<class>/ and ROOT/<domain>/test/<class>/
  office31       ROOT/<domain>/images/<class>/
  classes        ROOT/<class>/
  arrays         ROOT is a .npz file, or a function as package.module:function

It reads BMP, GIF, JPEG, PNG, PPM, TIFF, WebP and
AVIF, of up to 120 million pixels. Unreadable photographs are skipped and
listed. OUT appears only when it is complete."""


def _add_options(parser: Parser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of pictures, or arrays")
    parser.add_argument("out", type=Path, metavar="OUT", help="HDF5 file to make; must not exist")
    parser.add_argument("--layout", metavar="NAME", help="layout of ROOT (default: domains)")
    parser.add_argument("--side", type=int, default=224, metavar="S", help="side of the square images [pixels] (224)")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: the available CPUs)")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at an unreadable photograph, an empty folder, or a class in two spellings; no file remains",
    )
    parser.add_argument(
        "--background",
        default="white",
        metavar="COLOUR",
        help="colour behind transparent parts: white (default), grey, black",
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def _execute(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.data import pack_writer

    if options.layout == "arrays":
        from fedh2l_mpi.data.array_pack import pack_arrays

        with pack_writer.progress_bar(options.quiet, "samples") as progress:
            report = pack_arrays(str(options.root), options.out, progress).report()
        if not options.quiet:
            say(report)
        return 0
    with pack_writer.progress_bar(options.quiet) as progress:
        packed = pack_writer.pack(
            options.root,
            options.out,
            options.layout,
            options.side,
            options.grey,
            options.workers,
            options.strict,
            options.background,
            progress,
        )
    if not options.quiet:
        say(packed.report())
    return 0


COMMAND = Command(
    name="pack",
    arguments="ROOT OUT",
    summary="make one file of pictures or of arrays",
    meaning=MEANING,
    examples=(
        ("Pack the folders PACS/photo/dog/, PACS/sketch/dog/ and so on", "{program} pack PACS pacs.h5"),
        ("Pack the arrays of an npz file", "{program} pack gestures.npz gestures.h5 --layout arrays"),
    ),
    add_options=_add_options,
    execute=_execute,
)
