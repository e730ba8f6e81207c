"""Data, their partition and the seed set: one class of options per data set, kind of partition and kind of views."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema, model_validator

from fedh2l_mpi.config import shift
from fedh2l_mpi.config.section import NO_SWITCH, Count, KindSection, Number, Share, Switch, problem, refuse
from fedh2l_mpi.config.shift import SHIFTS, Shift, out_of_bounds
from fedh2l_mpi.errors import did_you_mean, shown

Alpha = Annotated[
    float,
    Field(gt=0.0, le=1e6, description="concentration of the Dirichlet distribution; smaller is more skewed"),
    NO_SWITCH,
]
# The rotation of data that have no domains of their own.
DOMAINS, ROTATION_STEP_DEG = 4, 20.0
ROTATION = ("domains", "rotation_step_deg")
# Share of data without a test part that is kept for testing.
TEST_SHARE = 0.2
SHIFT_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"kind": {"enum": list(SHIFTS)}, "step": {"type": "number"}},
                    "required": ["kind", "step"],
                    "additionalProperties": False,
                },
            },
            {"type": "null"},
        ]
    }
)
# The bound keeps a product of a round's rows, classes and bytes within int64.
MOST_VIEWS = 1000


class PartitionConfig(KindSection):
    """Section `data.partition`: which participant holds which training samples.

    The two keys of the rotation are null only for data that have domains of their own; `rotation_step_deg` also if
    `shift` makes the domains.
    """

    kind: str = Field(
        "domains",
        description="domains: equal IID shares, and participant i holds domain i mod D; dirichlet, shards, "
        "pathological: skewed labels; quantity: unequal sizes; iid: equal shares of every domain; file: as a file says",
    )
    domains: Count | None = Field(
        DOMAINS,
        description="D, number of domains made by rotation or shift; with 1, samples are unchanged; "
        "null: one, or the data's own",
    )
    rotation_step_deg: Annotated[float, Field(ge=-180.0, le=180.0), NO_SWITCH] | None = Field(
        ROTATION_STEP_DEG,
        description="domain d is rotated by d times this angle [degrees, counter-clockwise]; null with shift; not "
        "for a pack",
    )
    shift: Annotated[tuple[dict[str, Any], ...] | None, SHIFT_SCHEMA] = Field(
        None,
        description="domain d is shifted by d times the step of each entry, in order, such as [{kind: noise, step: "
        f"0.1}}]; kinds: {', '.join(SHIFTS)}; null: images are rotated, and other samples are one domain; not for a "
        "pack",
    )
    samples_per_participant: Count | None = Field(
        None,
        description="training samples of each participant, its part of the seed set included; quantity, dirichlet "
        "with quantity_alpha: their mean; "
        "null: all samples are dealt",
    )
    min_per_class: Count | None = Field(
        None,
        description="the partition is drawn again, up to 100 times, until all participants together have this many "
        "private training samples of every class, and the seed set has as many; null: the first draw stays",
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {key: value for key, value in raw.items() if value is not None or key not in ROTATION}

    @model_validator(mode="before")
    @classmethod
    def _each_shift(cls, raw: Any) -> Any:
        entries = raw.get("shift") if isinstance(raw, dict) else None
        if entries is None:
            return raw
        if not isinstance(entries, list | tuple) or not entries:
            text = f"got {shown(entries)}, must be a list of maps such as [{{kind: noise, step: 0.1}}], or null"
            refuse(problem("shift", entries, text))
        read, problems = [], []
        for position, entry in enumerate(entries):
            try:
                read.append(shift.read(entry)._asdict())
            except ValueError as error:
                problems.append(problem(f"shift.{position}", entry, str(error)))
        if problems:
            refuse(*problems)
        return {**raw, "shift": read}

    @property
    def shifts(self) -> tuple[Shift, ...]:
        """The entries of `shift`; empty if it is null."""
        return tuple(Shift(**entry) for entry in self.shift or ())

    @model_validator(mode="after")
    def _one_way_to_make_domains(self) -> "PartitionConfig":
        if self.shift is None:
            return self
        step = self.rotation_step_deg
        if "rotation_step_deg" in self.model_fields_set and step is not None:
            text = f"got {step}, but shift is given. Fix: set it to null, or add {{kind: rotation, step: {step}}}."
            refuse(problem("rotation_step_deg", step, text))
        object.__setattr__(self, "rotation_step_deg", None)
        domains = DOMAINS if self.domains is None else self.domains
        wrong = [(position, out_of_bounds(one, domains)) for position, one in enumerate(self.shifts)]
        problems = [problem(f"shift.{position}", self.shift[position], text) for position, text in wrong if text]
        if problems:
            refuse(*problems)
        return self

    @model_validator(mode="after")
    def _domains_are_apart(self) -> "PartitionConfig":
        if self.domains is not None and self.rotation_step_deg is not None:
            total = (self.domains - 1) * self.rotation_step_deg
            if abs(total) >= 180.0:
                step = self.rotation_step_deg
                text = f"{self.domains} domains of {step} degrees reach {total}, must be under 180"
                refuse(problem("rotation_step_deg", step, f"{text} (a 6 turned round is a 9)"))
        return self


class DomainPartition(PartitionConfig, kind="domains"):
    """Equal IID shares, each of one domain."""


class DirichletPartition(PartitionConfig, kind="dirichlet"):
    """The class proportions of each participant are drawn; equal sizes, or drawn, too."""

    alpha: Alpha = 0.5
    quantity_alpha: Annotated[float, Field(gt=0.0, le=1e6), NO_SWITCH] | None = Field(
        None,
        description="concentration of the Dirichlet distribution of the participants' sizes; smaller is more skewed; "
        "null: equal sizes",
    )


class ShardPartition(PartitionConfig, kind="shards"):
    """Shards of samples sorted by label, dealt at random."""

    shards_per_participant: Count = Field(2, description="label-sorted shards that each participant receives")


class PathologicalPartition(PartitionConfig, kind="pathological"):
    """Equal sizes; each participant holds samples of a few classes only."""

    classes_per_participant: Count = Field(
        2, description="classes of which each participant holds samples, about as many of each"
    )


class QuantityPartition(PartitionConfig, kind="quantity"):
    """IID shares of unequal sizes."""

    alpha: Alpha = 1.0


class IidPartition(PartitionConfig, kind="iid"):
    """Equal shares; each sample is seen in a random domain."""


class FilePartition(PartitionConfig, kind="file"):
    """A file says which participant holds which training rows."""

    path: str = Field(
        description="CSV file with the columns row,participant and, if wanted, part (private, seed, validation, test); "
        "or an npz file with such arrays. Without part, rows are split by the shares of the config"
    )

    @model_validator(mode="after")
    def _file_decides(self) -> "FilePartition":
        given = {"samples_per_participant": self.samples_per_participant, "min_per_class": self.min_per_class}
        problems = [
            problem(key, value, f"got {value}, but the file says who holds which samples. Fix: set it to null.")
            for key, value in given.items()
            if value is not None
        ]
        if problems:
            refuse(*problems)
        return self


class DataConfig(KindSection):
    """Section `data`: where the samples come from."""

    kind_key = "name"
    noun = "data set"
    # True if another `data.root` means other data; False if it is only the place of a copy of public data.
    root_is_content: ClassVar[bool] = False

    name: str = Field(
        "digits",
        description="data set; pack: one HDF5 file, made by `python -m fedh2l_mpi pack`; `package.module:function` is "
        "your own, which returns a fedh2l_mpi.DataSet",
    )
    root: str | None = Field(
        None,
        description="folder or file of the data; null: $FEDH2L_DATA/<name>; not for digits, and not for your own "
        "function",
    )
    augmentation: Literal["none", "affine", "photo", "jitter", "word_dropout"] = Field(
        "none",
        description="random transformation of every private minibatch: affine (rotation, scale, shift: see "
        "seed_set.views) or photo (random resized crop, flip, colour) of images, jitter (noise) of images, series and "
        "vectors, or word_dropout of texts",
    )
    partition: PartitionConfig = PartitionConfig()

    @property
    def share_for_testing(self) -> float:
        """Share of the samples that is kept for testing if the data have no test part."""
        return TEST_SHARE

    @classmethod
    def class_of(cls, kind: object) -> type[Any] | None:
        """Class of a data set's options; any `package.module:function` has those of a user's own data."""
        module, colon, name = kind.partition(":") if isinstance(kind, str) else ("", "", "")
        return cls._own() if colon and module and name else super().class_of(kind)

    @classmethod
    def classes(cls) -> list[type[Any]]:
        """Options of all data sets, those of a user's own data included."""
        return [*super().classes(), cls._own()]

    @classmethod
    def _own(cls) -> type[Any]:
        from fedh2l_mpi.config.data_sets import OwnData

        return OwnData

    @classmethod
    def unknown_kind(cls, kind: object) -> str:
        """Text of the message about an unknown data set."""
        known = ", ".join(sorted(cls.kinds))
        return (
            f"got {shown(kind)}; known: {known}, or your own as package.module:function{did_you_mean(kind, cls.kinds)}"
        )

    @classmethod
    def unused_key(cls, key: str, kind: str) -> str:
        """Reason why this data set refuses a key of others."""
        if key == "options":
            return f"options are for your own function, not for {kind!r}"
        return f"{kind!r} has its own test part" if key == "test_share" else super().unused_key(key, kind)


class Digits(DataConfig, kind="digits"):
    """Handwritten digits of scikit-learn, 8 x 8 pixels."""

    @model_validator(mode="after")
    def _needs_no_files(self) -> "Digits":
        if self.root is not None:
            text = f"got {self.root!r}, but digits ship with scikit-learn. Fix: set it to null."
            refuse(problem("root", self.root, text))
        return self


class Mnist(DataConfig, kind="mnist"):
    """MNIST, 28 x 28 pixels, in IDX files."""


class FashionMnist(DataConfig, kind="fashion_mnist"):
    """Fashion-MNIST, 28 x 28 pixels, in IDX files."""


class Pack(DataConfig, kind="pack"):
    """Photographs or other samples in one HDF5 file."""

    root_is_content: ClassVar[bool] = True

    test_share: Number = Field(
        TEST_SHARE,
        gt=0.0,
        lt=1.0,
        description="share of a pack's samples kept for testing, the same for every seed; not for a pack with "
        "a test part",
    )

    @property
    def share_for_testing(self) -> float:
        """Share of the samples that is kept for testing."""
        return self.test_share

    @model_validator(mode="after")
    def _domains_are_those_of_the_pack(self) -> "Pack":
        given = self.partition.model_fields_set
        # A copy, because the section may be the default that all configs share.
        partition = self.partition.model_copy(update={key: None for key in ROTATION if key not in given})
        object.__setattr__(self, "partition", partition)
        return self


class SeedSetConfig(KindSection):
    """Section `seed_set`: the small labelled set that all participants hold and on which they exchange posteriors."""

    kind_key = "views"
    noun = "views"

    share: Share = Field(0.2, description="share of each participant's samples that goes into the seed set")
    max_samples: Count | None = Field(2000, description="largest size of the seed set [samples]; null: no limit")
    samples_per_round: Count | None = Field(
        None, description="seed samples drawn for the exchange of a round [samples]; null: the whole seed set"
    )
    views_per_sample: Annotated[int, Field(strict=True, ge=1, le=MOST_VIEWS)] = Field(
        1,
        description="k, views of each seed sample in a round; posteriors are exchanged on samples_per_round x k rows; "
        "1 with views none",
    )
    labelled: Switch = Field(True, description="use the seed labels; false: no cross-entropy on the seed set")
    views: str = Field(
        "affine",
        description="transformation of a round's seed samples, the same for every participant: affine (rotation, "
        "scale, shift), photo (crop, flip, colour) of images, mixup of pairs, both, jitter (noise) of series and "
        "vectors, word_dropout of texts, or auto: affine, jitter or word_dropout, by the samples",
    )


class NoViews(SeedSetConfig, kind="none"):
    """Seed samples as they are."""

    @model_validator(mode="after")
    def _has_no_copies(self) -> "NoViews":
        if self.views_per_sample > 1:
            text = (
                f"got {self.views_per_sample}, must be 1 for views 'none', because the rows of a sample would be "
                "equal. Fix: set it to 1, or choose other views."
            )
            refuse(problem("views_per_sample", self.views_per_sample, text))
        return self


class AffineViews(SeedSetConfig, kind="affine"):
    """Random rotation, scale and shift."""

    view_rotation_deg: Number = Field(
        15.0, ge=0.0, le=180.0, description="largest rotation in either direction [degrees]"
    )
    view_scale: Number = Field(0.1, ge=0.0, lt=1.0, description="largest change of size in either direction")
    view_shift: Number = Field(
        0.05,
        ge=0.0,
        lt=1.0,
        description="largest shift along each axis, before rotation and scale [share of the image's side]",
    )


class MixupViews(SeedSetConfig, kind="mixup"):
    """Mixtures of pairs of samples."""

    mixup_alpha: Number = Field(
        0.4, gt=0.0, le=1e3, description="the weights of a pair are drawn from Beta(alpha, alpha)"
    )


class BothViews(AffineViews, MixupViews, kind="both"):
    """Affine views, then mixtures of pairs."""


class PhotoViews(SeedSetConfig, kind="photo"):
    """Random crop, flip and colour."""


class JitterViews(SeedSetConfig, kind="jitter"):
    """Random noise on every number of a sample."""

    view_noise: Number = Field(
        0.1, ge=0.0, le=100.0, description="standard deviation of the noise [standard deviations of the data]"
    )


class WordDropoutViews(SeedSetConfig, kind="word_dropout"):
    """Random words of a text are unknown."""

    view_dropout: Share = Field(0.1, description="probability of each word to become an unknown one")


class AutoViews(AffineViews, JitterViews, WordDropoutViews, kind="auto"):
    """Affine views of images, jitter of series and vectors, and word dropout of texts."""
