"""Who learns from what: data, their partition, the seed set."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedh2l_mpi.config.section import Count, Number, Section, Share, Switch, check_kind_keys, fill

# Rotations of data that have no domains of their own.
DOMAINS, ROTATION_STEP_DEG = 4, 20.0


class PartitionConfig(Section):
    """Who holds which training samples."""

    kind: Literal["domains", "dirichlet", "shards", "quantity", "iid"] = Field(
        "domains",
        description="domains: equal IID shares, participant i holds domain i mod domains; dirichlet, shards: "
        "label skew; quantity: unequal sizes; iid: equal shares, every domain mixed in each",
    )
    domains: Count | None = Field(
        None, description="number of domains D (rotations, 4); 1 leaves the images as they are; a pack has its own"
    )
    rotation_step_deg: Number | None = Field(
        None,
        ge=-180.0,
        le=180.0,
        description="domain d is rotated by d times this angle (20) [degrees, counter-clockwise]; not for a pack",
    )
    samples_per_participant: Count | None = Field(
        None, description="training samples per participant (mean for kind quantity), seed share included; null: all"
    )
    alpha: Number | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description="Dirichlet concentration, dirichlet (0.5) and quantity (1.0); smaller is more skewed",
    )
    shards_per_participant: Count | None = Field(
        None, description="label-sorted shards dealt to each participant, kind shards (2)"
    )

    @model_validator(mode="after")
    def _keys_of_kind(self) -> "PartitionConfig":
        check_kind_keys(
            self,
            {"dirichlet": {"alpha": 0.5}, "quantity": {"alpha": 1.0}, "shards": {"shards_per_participant": 2}},
        )
        domains, step = (
            self.domains or DOMAINS,
            ROTATION_STEP_DEG if self.rotation_step_deg is None else self.rotation_step_deg,
        )
        if abs((domains - 1) * step) >= 180.0:
            raise PydanticCustomError(
                "rotation_range",
                "{key}: {domains} domains of {step} degrees reach {total}, must be under 180 (a 6 turned round is a 9)",
                {"key": "rotation_step_deg", "domains": domains, "step": step, "total": (domains - 1) * step},
            )
        return self


class DataConfig(Section):
    """Where the samples come from."""

    name: Literal["digits", "mnist", "fashion_mnist", "pack"] = Field(
        "digits", description="data set; pack: photographs in one HDF5 file, made by `python -m fedh2l_mpi pack`"
    )
    root: str | None = Field(
        None, description="folder of the IDX files, or the pack; null: $FEDH2L_DATA/<name>. digits needs none"
    )
    test_share: Number | None = Field(
        None, gt=0.0, lt=1.0, description="share of a pack's images kept for testing, the same for every seed (0.2)"
    )
    augmentation: Literal["none", "affine", "photo"] = Field(
        "none",
        description="of private minibatches, drawn anew for each: affine (rotation, scale, shift: see views), photo "
        "(random resized crop, flip, colour)",
    )
    partition: PartitionConfig = PartitionConfig()

    @model_validator(mode="after")
    def _keys_of_name(self) -> "DataConfig":
        if self.name == "digits" and self.root is not None:
            raise PydanticCustomError(
                "unused_key",
                "root: got {root}, but digits ship with scikit-learn; set it to null",
                {"root": repr(self.root)},
            )
        if self.name != "pack":
            if self.test_share is not None:
                raise PydanticCustomError(
                    "unused_key",
                    "test_share: got {value}, but {name} has its own test part; set it to null",
                    {"value": self.test_share, "name": repr(self.name)},
                )
            # A copy: the section may be the default that all configs share.
            partition = self.partition.model_copy()
            fill(partition, domains=DOMAINS, rotation_step_deg=ROTATION_STEP_DEG)
            object.__setattr__(self, "partition", partition)
            return self
        for key in ("domains", "rotation_step_deg"):
            value = getattr(self.partition, key)
            if value is not None:
                raise PydanticCustomError(
                    "unused_key",
                    "partition.{key}: got {value}, but a pack brings its own domains; set it to null",
                    {"key": key, "value": value},
                )
        fill(self, test_share=0.2)
        return self


class SeedSetConfig(Section):
    """The small labelled set that every participant holds and on which posteriors are exchanged."""

    share: Share = Field(0.2, description="share of every participant's samples that goes to the seed set")
    max_samples: Count | None = Field(2000, description="cap on the pooled seed set [samples]; null: none")
    samples_per_round: Count | None = Field(
        None, description="seed samples S drawn for a round's exchange [samples]; null: the whole seed set"
    )
    labelled: Switch = Field(True, description="whether the seed labels are used; false drops the seed cross-entropy")
    views: Literal["none", "affine", "mixup", "both", "photo"] = Field(
        "affine",
        description="how a round's seed samples are transformed, the same for every participant: affine (rotation, "
        "scale, shift), mixup (of pairs), both, photo (crop, flip, colour)",
    )
    view_rotation_deg: Number | None = Field(
        None, ge=0.0, le=180.0, description="largest turn either way, affine and both (15) [degrees]"
    )
    view_scale: Number | None = Field(
        None, ge=0.0, lt=1.0, description="largest change of size either way, affine and both (0.1)"
    )
    view_shift: Number | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="largest shift along each axis before turn and scale, affine and both (0.05) [of the image's side]",
    )
    mixup_alpha: Number | None = Field(
        None, gt=0.0, le=1e3, description="a pair's weights are Beta(alpha, alpha), mixup and both (0.4)"
    )

    @model_validator(mode="after")
    def _keys_of_views(self) -> "SeedSetConfig":
        affine: dict[str, object] = {"view_rotation_deg": 15.0, "view_scale": 0.1, "view_shift": 0.05}
        mixup: dict[str, object] = {"mixup_alpha": 0.4}
        uses = {"affine": affine, "mixup": mixup, "both": {**affine, **mixup}}
        check_kind_keys(self, uses, kind_key="views")
        return self
