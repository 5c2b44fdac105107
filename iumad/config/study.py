"""Params files: frozen, closed schema; one study expands to runs; a run has a stable hash.

A params file holds only what differs from the defaults below. Its top level is a `StudyConfig`; each
combination of method, modality, setting and seed is one `RunConfig`. Two runs with the same hash are the same
experiment: the profile's name and the method's label are not part of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from iumad.config.hashing import stable_hash, without_neutral
from iumad.config.methods import PRESETS, MethodConfig, Modality, model_section
from iumad.config.sections import (
    DataConfig,
    EvaluationConfig,
    FeaturesConfig,
    IncrementConfig,
    MiniCandiesConfig,
    ModelConfig,
    PerturbConfig,
    Section,
    TrainingConfig,
    data_of_run,
)
from iumad.config.validation import UniqueKeys, build, nearest
from iumad.errors import ConfigError


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
        has_layers = self.model.kind in ("reconstruction", "memory-bank")  # a bank trains nothing
        if self.increment.strategy == "projection" and not has_layers:
            raise ConfigError(
                f"method {self.method!r}: increment.strategy projection protects layers of reconstruction "
                f"methods, a {self.model.kind} has none; use none, svd, ewc or replay"
            )
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """The streams of the model: ('rgb',), ('depth',) or ('rgb', 'depth')."""
        return tuple(self.modality.split("+"))

    @property
    def run_id(self) -> str:
        """Twelve hex digits: the hash of everything but the profile and the method's label."""
        return stable_hash(
            without_neutral(self.model_dump(mode="json", exclude={"profile", "method"}))
        )

    def step_key(self, steps: Iterable[tuple[str, ...]]) -> str:
        """Key of the model after `steps`: runs that agree up to there share it.

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
        content = without_neutral(self.model_dump(mode="json", exclude=exclude))
        del content["data"]["categories"]
        return stable_hash([content, trained])


class StudyConfig(Section):
    """A grid of runs: methods x modalities x settings x seeds on one data set."""

    profile: str = Field("default", description="name shown on every page")
    data: DataConfig = MiniCandiesConfig()
    features: FeaturesConfig = FeaturesConfig()
    model: dict[str, Any] = Field({}, description="changes for all reconstruction methods")
    training: TrainingConfig = TrainingConfig()
    increment: dict[str, Any] = Field({}, description="changes for all methods' increments")
    evaluation: EvaluationConfig = EvaluationConfig()
    methods: dict[str, MethodConfig] = Field({"iuf": MethodConfig(), "ib-iumad": MethodConfig()})
    modalities: tuple[Modality, ...] = ("rgb+depth",)
    settings: tuple[str, ...] = ("6-1",)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)

    @model_validator(mode="after")
    def _every_run_is_valid(self) -> "StudyConfig":
        for name, method in self.methods.items():
            preset = method.preset or name
            if preset not in PRESETS:
                raise ValueError(
                    f"methods.{name}: no method is called {preset!r}{nearest(preset, PRESETS)}; "
                    f"known: {', '.join(PRESETS)}"
                )
            for key in ("modalities", "settings"):
                limit = getattr(method, key)
                if limit is not None and not set(limit) & set(getattr(self, key)):
                    raise ValueError(f"methods.{name}.{key}: none of {list(limit)} is in the grid")
        for key in ("methods", "modalities", "settings", "seeds"):
            if not getattr(self, key):
                raise ValueError(f"{key}: at least one is needed")
        self.runs()
        return self

    def runs(self) -> list[RunConfig]:
        """All runs of the grid, seeds innermost."""
        return [
            self._run(name, modality, setting, seed)
            for setting in self.settings
            for modality in self.modalities
            for name, method in self.methods.items()
            if method.is_in(modality, setting)
            for seed in self.seeds
        ]

    def _run(self, name: str, modality: Modality, setting: str, seed: int) -> RunConfig:
        method = self.methods[name]
        preset = PRESETS[method.preset or name]
        model = preset.get("model", {}) | method.model
        if model.get("kind", "reconstruction") == "reconstruction":
            model = self.model | model
        training = self.training.model_dump() | preset.get("training", {}) | method.training
        increment = self.increment | preset.get("increment", {}) | method.increment
        where = f"methods.{name}"
        return RunConfig(
            profile=self.profile,
            method=name,
            modality=modality,
            setting=setting,
            seed=seed,
            data=data_of_run(self.data, seed),
            features=self.features,
            model=build(model_section(model), model, f"model (or {where}.model)"),
            training=build(TrainingConfig, training, f"training (or {where}.training)"),
            increment=build(IncrementConfig, increment, f"increment (or {where}.increment)"),
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
            if key not in ("methods", "modalities", "settings", "seeds"):
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


def load_params(
    path: str | Path, overrides: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> StudyConfig:
    """Read and check a params file (YAML).

    Parameters
    ----------
    path : str or Path
        YAML file with the keys of `StudyConfig`; a missing `profile` becomes the file's stem.
    overrides : mapping, optional
        Top-level keys that replace those of the file.
    assignments : sequence of str
        `key.subkey=value` with a YAML value, e.g. ``data.root=my/folder``; applied last.

    Raises
    ------
    ConfigError
        The file cannot be read, is not a mapping, or a key or value is wrong; the text names file and key.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as a params file: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: a params file is a mapping of keys to values, got {type(content).__name__}"
        )
    content = {"profile": path.stem} | content | dict(overrides or {})
    for assignment in assignments:
        content = _assigned(content, assignment)
    return build(StudyConfig, content, str(path))


def _assigned(content: dict[str, Any], assignment: str) -> dict[str, Any]:
    """The content with one `key.subkey=value` applied."""
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {assignment}: needs KEY=VALUE, e.g. data.root=my/folder")
    head, *rest = key.split(".", 1)
    if not rest:
        try:
            return content | {head: yaml.safe_load(value)}
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--set {assignment}: the value is not YAML: {reason}") from error
    inner = content.get(head) or {}
    if not isinstance(inner, dict):
        raise ConfigError(f"--set {assignment}: {head} is a value, not a section")
    return content | {head: _assigned(inner, f"{rest[0]}={value}")}


def notebook_params(namespace: Mapping[str, Any]) -> StudyConfig:
    """The study of a notebook, from the names of its parameters cell.

    When papermill injected a params file (`-f`), `profile` is set and the injected keys are the study;
    otherwise the file named `params_file` is read. Keys left at None keep their defaults.
    """
    keys = set(StudyConfig.model_fields)
    given = {key: namespace[key] for key in keys if namespace.get(key) is not None}
    if "profile" in given:
        return build(StudyConfig, given, f"parameters of profile {given['profile']!r}")
    return load_params(namespace["params_file"], overrides=given)
