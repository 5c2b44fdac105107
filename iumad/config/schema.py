"""A params file is a `StudyConfig`, a grid of runs; each combination of its axes is one `RunConfig`.

Two runs with the same `run_id` are the same experiment: the profile's name and the method's label are not part of
it. A setting names how many categories each step learns (paper §4.1):

    ``10-0``   one step with all ten categories
    ``6-4``    six categories, then four
    ``6-1``    six categories, then one at a time until none is left
    ``1-1``    one at a time from the start
    ``6-2-2``  three or more numbers list every step
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from iumad.config.methods import (
    READ_IMAGES,
    RECONSTRUCTIONS,
    UNTRAINED,
    KeepConfig,
    MethodConfig,
    ModelConfig,
    ReconstructionConfig,
    find_preset,
    model_section,
)
from iumad.config.sections import (
    Count,
    DataConfig,
    EvaluationConfig,
    FeaturesConfig,
    IncrementConfig,
    MiniCandiesConfig,
    Modality,
    PerturbConfig,
    Section,
    TrainingConfig,
    build,
    data_of_run,
    nearest,
    quoted,
)
from iumad.errors import ConfigError

SETTING_PATTERN = re.compile(r"[1-9]\d*(-0|(-[1-9]\d*)+)")


def parse_setting(setting: str, categories: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Categories that each step learns, in the order given.

    Parameters
    ----------
    setting : str
        ``base-increment`` or the size of every step, see the module's text.
    categories : sequence of str
        All categories, distinct, in the order in which they are learnt.

    Returns
    -------
    tuple of tuple of str
        One tuple per step; together they are `categories`, each once and in order.

    Raises
    ------
    ConfigError
        If the setting is not written as above or does not use up the categories exactly.
    """
    repeated = sorted({name for name in categories if list(categories).count(name) > 1})
    if repeated:
        raise ConfigError(f"categories must be distinct, got {', '.join(repeated)} more than once")

    sizes = _step_sizes(setting, len(categories))
    ends = [sum(sizes[: step + 1]) for step in range(len(sizes))]
    return tuple(tuple(categories[end - size : end]) for size, end in zip(sizes, ends, strict=True))


def _step_sizes(setting: str, n_categories: int) -> list[int]:
    if not SETTING_PATTERN.fullmatch(setting):
        raise ConfigError(f"setting must look like 10-0, 6-1 or 6-2-2, got {setting!r}")

    sizes = [int(part) for part in setting.split("-")]
    if len(sizes) == 2:
        base, increment = sizes
        n_increments = max(1, (n_categories - base) // increment) if increment else 0
        sizes = [base] + [increment] * n_increments
    if sum(sizes) != n_categories:
        raise ConfigError(
            f"setting {setting} does not fit {n_categories} categories: its steps must add up to "
            f"them exactly, e.g. {n_categories}-0 for one step or 1-1 for one category a step"
        )
    return sizes


SECTIONS = ("data", "features", "model", "training", "increment", "evaluation")
AXES = ("methods", "modalities", "settings", "seeds")  # of a study's grid
MAX_SEED = 2**31 - 1
MAX_NAME = 80  # letters of a name that becomes part of a path or a label
MAX_NAME_BYTES = 200  # of such a name in UTF-8: file systems allow 255 with a suffix


def stable_hash(content: Any) -> str:
    """Twelve hex digits of the SHA-256 of the content's canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class RunConfig(Section):
    """One experiment: one method, modality, setting and seed."""

    profile: str
    method: str
    modality: Modality
    setting: str
    seed: int
    data: DataConfig
    features: FeaturesConfig
    model: ModelConfig
    training: TrainingConfig
    increment: IncrementConfig
    evaluation: EvaluationConfig
    perturb: PerturbConfig = PerturbConfig()

    @model_validator(mode="after")
    def _strategy_fits(self) -> "RunConfig":
        has_layers = self.model.kind in (*RECONSTRUCTIONS, *UNTRAINED)
        if self.increment.strategy == "projection" and not has_layers:
            raise ConfigError(
                f"method {self.method!r}: increment.strategy projection protects layers of reconstruction "
                f"methods, a {self.model.kind} has none; use none, svd, ewc or replay"
            )
        condition = getattr(self.model, "condition", "none")
        if self.increment.strategy == "feature-replay" and (
            condition != "none" or self.model.kind in READ_IMAGES
        ):
            raise ConfigError(
                f"method {self.method!r}: increment.strategy feature-replay keeps features only, but this method "
                "reads images; plain and uniad do not"
            )
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """The streams of the model, such as ('rgb',) or ('rgb', 'depth')."""
        return tuple(self.modality.split("+"))

    @property
    def run_id(self) -> str:
        """Twelve hex digits: the hash of everything but the profile and the method's label.

        A new key of a section changes it for every run, so that published rows belong to none any more.
        """
        return stable_hash(self._content({"profile", "method"}))

    @property
    def trunk(self) -> "RunConfig | None":
        """The run whose base step is this one's trunk, where a method begins with another's trained network."""
        if not isinstance(self.model, KeepConfig):
            return None
        network = self.model.model_dump(exclude={"kind", "own", "patches"})
        return self.model_copy(update={"model": ReconstructionConfig(**network)})

    def idle(self, section: str) -> dict[str, str]:
        """Keys of `model`, `training` or `increment` that change nothing in this run, each with the reason."""
        if section == "model":
            return self.model.idle(self.modalities)
        keys = type(getattr(self, section)).model_fields
        is_joint = self.increment.strategy == "joint"
        others = [key for key in keys if key != "strategy"]
        if self.model.kind in UNTRAINED:
            found = dict.fromkeys(others, f"a {self.model.kind} is not trained")
            return found | ({} if is_joint else {"strategy": "without training only joint acts"})
        if section == "training":
            return {}
        if is_joint:
            return dict.fromkeys(others, "joint training has no increments")
        if self.setting.endswith("-0"):
            return dict.fromkeys(keys, f"setting {self.setting} has no increments")
        return self.increment.idle()

    def steps_of(self, categories: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """Categories that each step learns; joint training has one step, whatever the setting."""
        steps = parse_setting(self.setting, categories)
        return (categories,) if self.increment.strategy == "joint" else steps

    def step_key(self, steps: Iterable[tuple[str, ...]], data_digest: str = "") -> str:
        """Key of the model after `steps`: runs that agree up to there share it.

        Where the data lie does not matter; what they are does: `data_digest` stands for the training images
        (`iumad.data.sample.Dataset.digest`).

        The base step (one element) does not depend on how increments are trained, so all strategies and all
        settings with the same base categories start from one base model. A model does not depend on categories
        that come later either, so a run goes on from one that knew fewer.
        """
        trained = [list(step) for step in steps]
        exclude = {"profile", "method", "setting", "evaluation"}
        if len(trained) == 1:
            exclude.add("increment")
        if len(trained) == 1 and not self.perturb.reaches(0):
            exclude.add("perturb")
        content = self._content(exclude)
        if "perturb" in content and not any(map(self.perturb.reaches, range(len(trained)))):
            content["perturb"] = PerturbConfig().model_dump(mode="json")  # trained on clean images
        content.get("perturb", {}).pop("test", None)
        del content["data"]["categories"]
        return stable_hash([content, trained, *([data_digest] if data_digest else [])])

    def _content(self, exclude: set[str]) -> dict[str, Any]:
        """The run as plain values, without the place of its data."""
        content = self.model_dump(mode="json", exclude=exclude)
        for key in ("root", "source"):
            content["data"].pop(key, None)
        return content


class StudyConfig(Section):
    """A grid of runs: methods x modalities x settings x seeds on one data set."""

    profile: str = Field("default", description="name shown on every page")
    data: DataConfig = MiniCandiesConfig()
    features: FeaturesConfig = FeaturesConfig()
    model: dict[str, Any] = Field({}, description="changes for all reconstruction methods")
    training: TrainingConfig = TrainingConfig()
    base_epochs: dict[str, Count] | None = Field(
        None,
        description="setting: epochs of its runs, in place of training.epochs even of a file on top, so that "
        "a base step of fewer categories sees as many images; joint training keeps training.epochs",
    )
    increment: dict[str, Any] = Field({}, description="changes for all methods' increments")
    evaluation: EvaluationConfig = EvaluationConfig()
    methods: dict[str, MethodConfig] = Field({"iuf": MethodConfig(), "ib-iumad": MethodConfig()})
    modalities: tuple[Modality, ...] = ("rgb+depth",)
    settings: tuple[str, ...] = ("6-1",)
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = (0,)
    assigned: dict[str, dict[str, Any]] = Field(
        {}, description="model, training, increment: changes that win over what methods set"
    )

    @field_validator("profile")
    @classmethod
    def _profile_is_a_folder(cls, profile: str) -> str:
        for part in profile.split("/"):
            require_name(part, "profile")
        return profile

    @model_validator(mode="after")
    def _every_run_is_valid(self) -> "StudyConfig":
        for axis in AXES:
            values = list(getattr(self, axis))
            if not values:
                raise ValueError(f"{axis}: at least one is needed")
            repeated = sorted({str(value) for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"{axis}: given more than once: {', '.join(repeated)}")
        for key, settings in (("settings", self.settings), ("base_epochs", self.base_epochs or ())):
            for setting in settings:
                if not SETTING_PATTERN.fullmatch(setting):
                    raise ValueError(f"{key}: must look like 10-0, 6-1 or 6-2-2, got {setting!r}")
        known = self.data.known_modalities
        for modality in self.modalities:
            for name in modality.split("+"):
                if known is not None and name not in known:
                    raise ValueError(
                        f"modalities: {modality}: the data set {self.data.name} has no {name!r}"
                        f"{nearest(name, known)}; it has {', '.join(known)}"
                    )
        twins: dict[str, str] = {}
        for name, method in self.methods.items():
            require_name(name, "methods")
            if twins.setdefault(name.casefold(), name) != name:
                raise ValueError(
                    f"methods: {twins[name.casefold()]!r} and {name!r} differ in case only"
                )
            preset = method.preset or name
            try:
                find_preset(preset)
            except ConfigError as error:
                raise ValueError(f"methods.{name}: {error}") from error
            for key in ("modalities", "settings", "seeds"):
                limit = getattr(method, key)
                if limit is not None and not set(limit) & set(getattr(self, key)):
                    raise ValueError(f"methods.{name}.{key}: none of {list(limit)} is in the grid")
        self._sizes_fit()
        runs = self.runs()
        if not any(run.model.kind in RECONSTRUCTIONS for run in runs):
            build(ReconstructionConfig, self.model, "model")  # a misspelt key is found here too
        self.require_effect()
        return self

    def _sizes_fit(self) -> None:
        size, grid = self.data.image_size, self.features.grid
        if self.evaluation.pool > size:
            raise ValueError(
                f"evaluation.pool: a window of {self.evaluation.pool} pixels does not fit images of {size}"
            )
        if grid > size:
            raise ValueError(
                f"features.grid: {grid} x {grid} tokens need images of at least {grid} pixels, got {size}"
            )

    def require_effect(self) -> None:
        """Refuse an assigned key that changes no run of the grid.

        Raises
        ------
        ConfigError
            Which key, and why.
        """
        runs = self.runs()
        for section, changes in self.assigned.items():
            for key in changes:
                having = [run for run in runs if key in type(getattr(run, section)).model_fields]
                if not having:
                    names = {n for run in runs for n in type(getattr(run, section)).model_fields}
                    raise ConfigError(
                        f"{section}.{key}: no method of this study has such a key{nearest(key, names)}"
                    )
                reasons = [run.idle(section).get(key) for run in having]
                if all(reasons):
                    said = "; ".join(sorted({str(reason) for reason in reasons}))
                    raise ConfigError(f"{section}.{key} would change no run of this study: {said}")

    @property
    def notes(self) -> dict[str, str]:
        """What each method is, and what of its original is reduced, in one line."""
        return {name: find_preset(each.preset or name).note for name, each in self.methods.items()}

    def runs(self) -> list[RunConfig]:
        """All runs of the grid, seeds innermost."""
        return [
            self._run(name, modality, setting, seed)
            for setting in self.settings
            for modality in self.modalities
            for name, method in self.methods.items()
            for seed in self.seeds
            if method.is_in(modality, setting, seed)
        ]

    def _run(self, name: str, modality: Modality, setting: str, seed: int) -> RunConfig:
        method = self.methods[name]
        preset = find_preset(method.preset or name)
        own = {**preset.model, **method.model}
        section = model_section(own)
        if own.get("kind", "reconstruction") in RECONSTRUCTIONS:
            own = self.model | own
        assigned = self.assigned.get("model", {})
        model = own | {key: value for key, value in assigned.items() if key in section.model_fields}
        training = self.training.model_dump(exclude_unset=True) | dict(preset.training)
        increment = self.increment | dict(preset.increment) | method.increment
        where = f"methods.{name}"
        is_trained = own.get("kind") not in UNTRAINED and increment.get("strategy") != "joint"
        if is_trained and self.base_epochs and setting in self.base_epochs:
            training["epochs"] = self.base_epochs[setting]
        return RunConfig(
            profile=self.profile,
            method=name,
            modality=modality,
            setting=setting,
            seed=seed,
            data=data_of_run(self.data, seed),
            features=self.features,
            model=build(section, model, f"model (or {where}.model)"),
            training=build(
                TrainingConfig,
                training | method.training | self.assigned.get("training", {}),
                f"training (or {where}.training)",
            ),
            increment=build(
                IncrementConfig,
                increment | self.assigned.get("increment", {}),
                f"increment (or {where}.increment)",
            ),
            evaluation=self.evaluation,
            perturb=method.perturb,
        )

    def select(self, **wanted: Iterable[Any]) -> "StudyConfig":
        """The part of the grid with these `methods`, `modalities`, `settings` or `seeds`.

        Raises
        ------
        ConfigError
            A key is unknown, or a value is not in the grid.
        """
        update: dict[str, Any] = {}
        for key, values in wanted.items():
            if key not in AXES:
                raise ConfigError(f"select: no such part of the grid: {key!r}")
            have, values = getattr(self, key), list(values)
            missing = [value for value in values if value not in have]
            if missing:
                raise ConfigError(
                    f"select: {key} {missing} not in profile {self.profile!r}: {list(have)}"
                )
            chosen = [value for value in have if value in values]
            update[key] = {v: have[v] for v in chosen} if key == "methods" else tuple(chosen)
        part = self.model_copy(update=update)
        if not part.runs():
            raise ConfigError(f"select: profile {self.profile!r} has no run with all of {wanted}")
        return part


def require_name(name: str, where: str) -> None:
    """Refuse a name that cannot safely be part of a path or stand in a table.

    Raises
    ------
    ConfigError
        The name is empty or too long, has surrounding spaces, separators of paths or unprintable letters, or is
        not in Unicode's composed form (NFC), beside which it could not be told apart.
    """
    reason = None
    if not name or name != name.strip():
        reason = "is empty or has spaces around it"
    elif len(name) > MAX_NAME:
        reason = f"has more than {MAX_NAME} letters"
    elif len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        reason = f"has more than {MAX_NAME_BYTES} bytes"
    elif re.search(r"[/\\:]", name) or name in (".", "..") or name.startswith("."):
        reason = "has a separator of paths, or begins with a dot"
    elif not name.isprintable():
        reason = "has letters that cannot be printed"
    elif unicodedata.normalize("NFC", name) != name:
        reason = "is not in Unicode's composed form (NFC)"
    if reason:
        raise ConfigError(f"{where}: a name was expected, but {quoted(name)} {reason}")
