"""Registry of data sets: open the one that the config names."""

from dataclasses import replace

from fedh2l_mpi.config import BroughtData, DataConfig
from fedh2l_mpi.config.data import TEST_SHARE, Pack
from fedh2l_mpi.config.data_files import Bundled, Cifar10, Cifar100, Csv, Npz, Text
from fedh2l_mpi.config.data_sets import ImageFolder, OwnData
from fedh2l_mpi.data import sources
from fedh2l_mpi.data.content_digest import with_digest
from fedh2l_mpi.data.made_domains import made_domains
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError


def open_source(data: DataConfig) -> Source:
    """Open the data set of section `data` of the config.

    Raises
    ------
    UserError
        If a file is missing or damaged, or the data do not fit the section.
    """
    source = _open(data)
    share = data.test_share if isinstance(data, BroughtData | Pack) else None
    # The default of a pack is a number, which stored configs have.
    share = None if isinstance(data, Pack) and share == TEST_SHARE else share
    if share is not None and source.test is not None:
        raise UserError(
            f"data.test_share: got {share}, but {source.name} has its own test part of {len(source.test.labels)} "
            "samples. Fix: set it to null."
        )
    if isinstance(data, BroughtData) and not source.digest:
        source = with_digest(source)
    # Samples that are shifted are normalised once, before the first round.
    made = made_domains(data.partition, source) if source.is_compact and source.domains is None else None
    if made is not None and made.changes_samples:
        return replace(source, is_compact=False)
    return source


def _open(data: DataConfig) -> Source:
    if data.name == "pack":
        # Only ranks that read a pack should pay for h5py's 11 MiB.
        from fedh2l_mpi.data.pack_reader import open_pack

        return open_pack(data.root)
    if isinstance(data, Npz):
        from fedh2l_mpi.data.npz_reader import open_npz

        return open_npz(data)
    if isinstance(data, ImageFolder):
        from fedh2l_mpi.data.image_folder import open_folder

        return open_folder(data)
    if isinstance(data, OwnData):
        from fedh2l_mpi.data.own_data import open_own

        return open_own("data.name", data.name, data.options, data.share_for_testing)
    if isinstance(data, Csv):
        from fedh2l_mpi.data.csv_reader import open_csv

        return open_csv(data)
    if isinstance(data, Text):
        from fedh2l_mpi.data.text_reader import open_text

        return open_text(data)
    if isinstance(data, Cifar10 | Cifar100):
        from fedh2l_mpi.data.cifar_reader import open_cifar

        return open_cifar(data.name, data.root)
    if isinstance(data, Bundled):
        from fedh2l_mpi.data.bundled import open_bundled

        return open_bundled(data)
    return sources.digits() if data.name == "digits" else sources.idx(data.name, data.root)
