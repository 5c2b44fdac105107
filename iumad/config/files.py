"""Reading of params files: YAML, the chain of `base` files, assignments, and the variants of `vary`.

What decides a value, later ones winning:

1. the defaults of `iumad.config.sections` and `iumad.config.methods`
2. the files named by `base`, the farthest first, then the file itself: its sections `data`, `features`, `model`,
   `training`, `increment` and `evaluation`
3. what the method is made of (`iumad.config.methods.PRESETS`)
4. the method's own entry under `methods`, and the value of `vary`
5. assignments: `--set KEY=VALUE` on the command line, `changes` in a notebook
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from iumad.config.schema import SECTIONS, StudyConfig
from iumad.config.sections import build, nearest
from iumad.errors import ConfigError

MAX_VARIANTS = 200  # of one method by `vary`; more is a slip


class UniqueKeys(yaml.SafeLoader):
    """YAML without mappings that name a key twice, of which it would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with every key once."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for place, key in enumerate(keys) if key in keys[:place]]
        if twice:
            raise yaml.YAMLError(f"key {twice[0]!r} is given twice, {node.start_mark}".strip())
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text.

    Raises
    ------
    ConfigError
        The text is not YAML, or has a value that Python cannot hold; the message begins with `where`.
    """
    try:
        return yaml.load(text, Loader=UniqueKeys)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # ValueError: dates such as 2026-13-45, integers of thousands of digits; TypeError: keys without a hash;
        # AttributeError: a tag that does not fit its value
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{where}: not valid YAML: {' '.join(reason.split())}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises
    ------
    ConfigError
        The file cannot be read or holds no mapping of names to values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError, ValueError) as error:  # ValueError: a null byte in the name
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: needs a mapping of keys to values, got {type(content).__name__}"
        )
    unnamed = [key for key in content if not isinstance(key, str)]
    if unnamed:
        raise ConfigError(f"{path}: keys must be names, got {unnamed[0]!r}")
    return content


def base_chain(path: str | Path) -> list[Path]:
    """The files that a params file is made of, in the order in which they are laid on each other; itself last.

    Raises
    ------
    ConfigError
        A file is missing, or a file builds on itself.
    """
    return [file for file, _ in _layers(Path(path), ())]


def read_params(path: str | Path) -> dict[str, Any]:
    """Content of a params file on top of its bases.

    Sections are merged key by key; everything else (`methods`, `settings`, lists) is replaced. A `data` section of
    another data set replaces the base's. The profile is the file's own, by default its stem.
    """
    content: dict[str, Any] = {}
    for _, own in _layers(Path(path), ()):
        content.pop("profile", None)
        content = merged(content, own)
    return {"profile": Path(path).stem} | content


def _layers(path: Path, above: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """Files and contents of a params file and all that it builds on, lowest first."""
    content = read_yaml(path)
    bases = content.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ConfigError(f"{path}: base must be a params file or a list of them, got {bases!r}")
    layers = []
    for base in bases:
        following, chain = path.parent / base, (*above, path)
        if not following.is_file():
            raise ConfigError(f"{path}: base: there is no file {following}")
        if following.resolve() in [each.resolve() for each in chain]:
            names = " -> ".join(str(each) for each in [*chain, following])
            raise ConfigError(f"{chain[0]}: files build on each other in a circle: {names}")
        layers += _layers(following, chain)
    return [*layers, (path, content)]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Params on top of others: sections merge key by key, all else is replaced."""
    content = dict(below) | dict(above)
    for name in SECTIONS:
        lower, upper = below.get(name), above.get(name)
        if isinstance(lower, Mapping) and isinstance(upper, Mapping):
            other_data = name == "data" and upper.get("name", lower.get("name")) != lower.get(
                "name"
            )
            content[name] = dict(upper) if other_data else {**lower, **upper}
    return content


def load_params(
    path: str | Path, overrides: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> StudyConfig:
    """Read and check a params file.

    Parameters
    ----------
    path : str or Path
        YAML file with the keys of `StudyConfig`, `base` and `vary`.
    overrides : mapping, optional
        Keys on top of the file, sections merged.
    assignments : sequence of str
        `key.subkey=value` with a YAML value, e.g. ``data.root=my/folder``; applied last, also over what methods
        set.

    Raises
    ------
    ConfigError
        The file cannot be read, is not a mapping, or a key or value is wrong; the text names file and key.
    """
    content = merged(read_params(path), overrides or {})
    return build_study(content, str(path), assignments)


def build_study(
    content: Mapping[str, Any], where: str, assignments: Sequence[str] = ()
) -> StudyConfig:
    """A study from the content of a params file; see `load_params`."""
    content = _with_variants(dict(content), where)
    plain: dict[str, Any] = {}
    winning: dict[str, Any] = {}
    for assignment in assignments:
        keys, value = _split(assignment)
        target = winning if keys[0] in ("model", "training", "increment") else plain
        _assign(target, keys, value, assignment)
    for name, value in plain.items():
        below = content.get(name)
        content[name] = (
            _deep(below, value)
            if isinstance(below, Mapping) and isinstance(value, Mapping)
            else value
        )
    if winning:
        content = merged(content, {k: v for k, v in winning.items() if k != "model"})
        content["assigned"] = winning
    return build(StudyConfig, content, where)


def notebook_params(namespace: Mapping[str, Any]) -> StudyConfig:
    """The study of a notebook, from the names of its parameters cell.

    The cell has `params_file`, and may have `changes`. papermill replaces what is there and adds what is not:

    * ``-p params_file other.yaml`` shows another study;
    * ``-p changes "training.epochs=5, seeds=[0, 1]"`` (or a list of such texts) assigns, as `--set` does;
    * ``-f params.yaml`` or ``-y "{training: {epochs: 5}}"`` puts sections on top of those of `params_file`; a file
      that names a `profile` or a `base` is a study of its own, and stands alone.

    Raises
    ------
    ConfigError
        A value is wrong, or one of papermill's parameters has an unknown name.
    """
    names = set(StudyConfig.model_fields) - {"assigned"}
    given = {key: namespace[key] for key in (*sorted(names), "vary") if key in namespace}
    given = {key: _unquoted(value, key) for key, value in given.items() if value is not None}
    changes = namespace.get("changes", ())
    texts = _changes(changes) if isinstance(changes, str) else list(changes)
    if "base" in namespace:
        base = Path(namespace["params_file"]).parent / str(namespace["base"])
        return build_study(merged(read_params(base), given), f"parameters on {base}", texts)
    if "profile" in given:
        return build_study(given, f"parameters of profile {given['profile']!r}", texts)
    return load_params(namespace["params_file"], given, texts)


def refuse_unknown(injected: Mapping[str, Any], defaults: Mapping[str, Any], notebook: str) -> None:
    """Refuse a parameter that neither the notebook's cell nor a params file has.

    Raises
    ------
    ConfigError
        Naming the parameter, the nearest known one and all that are known.
    """
    known = {*defaults, *StudyConfig.model_fields, "base", "vary", "changes"} - {"assigned"}
    for name in injected:
        if name not in known:
            raise ConfigError(
                f"{notebook}: no parameter is called {name!r}{nearest(name, known)}; "
                f"known: {', '.join(sorted(known))}"
            )


def _with_variants(content: dict[str, Any], where: str) -> dict[str, Any]:
    """The content with every method once for each combination of the values of `vary`.

    `vary: {training.lr: [0.001, 0.003]}` makes `iuf` to `iuf[lr=0.001]` and `iuf[lr=0.003]`.
    """
    vary, methods = content.pop("vary", None), content.get("methods")
    if vary is None:
        return content
    if not isinstance(vary, Mapping) or not all(
        isinstance(key, str) and isinstance(values, list) and values for key, values in vary.items()
    ):
        raise ConfigError(f"{where}: vary needs KEY: [values], e.g. training.lr: [0.001, 0.003]")
    roots = ("model", "training", "increment", "perturb")
    for key in vary:
        if key.split(".")[0] not in roots or len(key.split(".")) != 2:
            raise ConfigError(
                f"{where}: vary: {key!r} must be a key of {', '.join(roots)}, e.g. training.lr"
            )
    if not isinstance(methods, Mapping):
        raise ConfigError(f"{where}: vary needs the methods that it varies")
    combinations = list(itertools.product(*vary.values()))
    if len(combinations) > MAX_VARIANTS:
        raise ConfigError(f"{where}: vary makes {len(combinations)} variants of every method")
    expanded = {}
    for name, method in methods.items():
        for values in combinations:
            pairs = dict(zip(vary, values, strict=True))
            label = ",".join(f"{key.split('.')[1]}={value}" for key, value in pairs.items())
            entry: dict[str, Any] = {"preset": name} | dict(method or {})
            for key, value in pairs.items():
                section, field = key.split(".")
                entry[section] = dict(entry.get(section, {})) | {field: value}
            expanded[f"{name}[{label}]"] = entry
    return content | {"methods": expanded}


def _split(assignment: str) -> tuple[list[str], Any]:
    """The parts of KEY.SUBKEY and the value of an assignment."""
    key, equals, value = str(assignment).partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {assignment}: needs KEY=VALUE, e.g. data.root=my/folder")
    names = set(StudyConfig.model_fields) - {"assigned", "methods"}
    if keys[0] not in names | {"methods"}:
        raise ConfigError(f"--set {assignment}: unknown key {keys[0]!r}{nearest(keys[0], names)}")
    return keys, parse_yaml(value, f"--set {assignment}")


def _assign(content: dict[str, Any], keys: list[str], value: Any, assignment: str) -> None:
    head, *rest = keys
    if not rest:
        content[head] = value
        return
    inner = content.setdefault(head, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"--set {assignment}: {head} is a value, not a section")
    _assign(inner, rest, value, assignment)


def _deep(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` on `below`, mappings merged at every depth."""
    return dict(below) | {
        key: _deep(below[key], value)
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        else value
        for key, value in above.items()
    }


def _unquoted(value: Any, key: str) -> Any:
    """A list or mapping that came as text, as papermill's `-p` gives it."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return parse_yaml(value, f"parameter {key}")
    return value


def _changes(text: str) -> list[str]:
    """Assignments in one text, separated by commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
