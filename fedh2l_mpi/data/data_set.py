"""`fedh2l_mpi.DataSet`: the data that a user's own function returns, and adapters of other libraries' data sets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedh2l_mpi.errors import UserError, did_you_mean


@dataclass(frozen=True)
class DataSet:
    """Samples with labels, and what is known about them. A user's own function returns one (`data.name`).

    Samples are an array of any form, or a reader: an object whose `len()` is the number of samples and whose
    `[row]` is one sample, the same one whenever it is read. Only the rows of a rank's own participants, of the seed
    set and of the tests are read, so an array that is mapped from a file stays there.

    Attributes
    ----------
    x_train, x_test : array or reader
        Integers or floats (N, ...): vectors (F,), series (K, L), images (K, H, W), (H, W, K) or (H, W), or token ids
        (L,). Without `x_test`, `data.test_share` of every class is kept for testing.
    y_train, y_test : integers or texts (N,), or None
        Class of each sample: 0 to C - 1, or its name. None: the reader gives pairs of sample and label.
    domain_train, domain_test : integers or texts (N,), or None
        Domain of each sample: 0 to D - 1, or its name. None: the data have no domains of their own.
    class_names, domain_names : sequence of str or None
        Names by number.
    kind : {"image", "series", "vector", "tokens"} or None
        None: by the number of axes and the type, see `data.array_form.form_of`.
    vocabulary : int or None
        Number of token ids, for `tokens`.
    mean, std : float, sequence of float, or None
        For normalisation, one for all values or one for each channel or feature; those of uint8 images refer to values
        divided by 255. None: those of the training samples.
    """

    x_train: Any
    y_train: Any = None
    x_test: Any = None
    y_test: Any = None
    domain_train: Any = None
    domain_test: Any = None
    class_names: Sequence[str] | None = None
    domain_names: Sequence[str] | None = None
    kind: str | None = None
    vocabulary: int | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None

    @classmethod
    def from_torch(
        cls,
        train: Any,
        test: Any = None,
        domains: Any = None,
        transform: Callable[[Any], Any] | None = None,
        **keywords: Any,
    ) -> "DataSet":
        """Return the samples of a PyTorch Dataset, whose items are pairs of sample and label.

        Parameters
        ----------
        train, test : torch.utils.data.Dataset
            With `__len__` and `__getitem__`, such as torchvision's. Labels are taken from `targets` if there are any,
            and else read once with the samples.
        domains : integers or texts, or a pair of them
            Domain of each training sample; with `test`, a pair of those of both parts.
        transform : callable or None
            Applied to every sample.
        keywords
            Other attributes of `DataSet`, such as `kind`.
        """
        parts = {"train": train} if test is None else {"train": train, "test": test}
        made: dict[str, Any] = {}
        for part, dataset in parts.items():
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                raise UserError(
                    f"DataSet.from_torch: {part} is {type(dataset).__name__}, which has no length and no items by "
                    "number. Use a Dataset with __len__ and __getitem__."
                )
            labels = _targets(dataset)
            made |= {f"x_{part}": _TorchRows(dataset, transform, labels is None), f"y_{part}": labels}
        if domains is not None:
            if test is not None and (not isinstance(domains, tuple | list) or len(domains) != 2):
                raise UserError("DataSet.from_torch: with a test part, domains must be a pair: of train, and of test.")
            made |= dict(
                zip(("domain_train", "domain_test"), domains if test is not None else (domains,), strict=False)
            )
        names = getattr(train, "classes", None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            made["class_names"] = tuple(names)
        return cls(**{**made, **keywords})

    @classmethod
    def from_hugging_face(
        cls, dataset: Any, sample: str = "image", label: str = "label", domain: str | None = None, **keywords: Any
    ) -> "DataSet":
        """Return the samples of a data set of Hugging Face's `datasets`.

        Parameters
        ----------
        dataset : DatasetDict or Dataset
            With the split `train`, and perhaps `test` (or `validation`); or one split.
        sample, label, domain : str
            Names of the columns.
        keywords
            Other attributes of `DataSet`, such as `kind`.
        """
        splits = dataset if isinstance(dataset, Mapping) else {"train": dataset}
        if "train" not in splits:
            raise UserError(f"DataSet.from_hugging_face: there is no split 'train' in {', '.join(map(str, splits))}.")
        test = next((name for name in ("test", "validation") if name in splits), None)
        made: dict[str, Any] = {}
        for part, split in [("train", "train"), *([("test", test)] if test else [])]:
            for column in (sample, label, *([domain] if domain is not None else [])):
                known = list(getattr(splits[split], "column_names", [column]))
                if column not in known:
                    raise UserError(
                        f"DataSet.from_hugging_face: split {split!r} has no column {column!r}"
                        f"{did_you_mean(column, known)}. Known: {', '.join(known)}."
                    )
            made |= {f"x_{part}": _Column(splits[split], sample), f"y_{part}": list(splits[split][label])}
            if domain is not None:
                made[f"domain_{part}"] = list(splits[split][domain])
        features = getattr(splits["train"], "features", None) or {}
        names = getattr(features.get(label), "names", None)
        if names:
            made["class_names"] = tuple(names)
        return cls(**{**made, **keywords})


@dataclass(frozen=True)
class _TorchRows:
    """Reader of a PyTorch Dataset: its samples, or pairs of sample and label."""

    dataset: Any
    transform: Callable[[Any], Any] | None
    gives_pairs: bool

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        sample, label = self.dataset[row][:2]
        if self.transform is not None:
            sample = self.transform(sample)
        return (sample, label) if self.gives_pairs else sample


@dataclass(frozen=True)
class _Column:
    """Reader of a column of a Hugging Face Dataset."""

    split: Any
    name: str

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> Any:
        return self.split[row][self.name]


def _targets(dataset: Any) -> Any:
    """Return the labels that a PyTorch Dataset knows without reading its samples; None if it knows none."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        labels = _targets(dataset.dataset)
        return None if labels is None else np.asarray(labels)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(getattr(dataset, "datasets", None), list):
        every = [_targets(one) for one in dataset.datasets]
        return None if any(one is None for one in every) else np.concatenate([np.asarray(one) for one in every])
    if isinstance(getattr(dataset, "tensors", None), tuple) and len(dataset.tensors) == 2:
        return np.asarray(dataset.tensors[1])
    return getattr(dataset, "targets", None)
