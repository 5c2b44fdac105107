"""Reading of params files: YAML, the chain of `base` files, assignments, and the variants of `vary`.

What decides a value, later ones winning:

1. the defaults of `iumad.config.sections` and `iumad.config.methods`
2. the files named by `base`, the farthest first, then the file itself: its sections `data`, `features`, `model`,
   `training`, `increment` and `evaluation`
3. what the method is made of (`iumad.config.methods.PRESETS`)
4. for `training.epochs` of trained methods, joint training aside: what `base_epochs` says of the setting. A file
   that builds on one with `base_epochs` has to set it too, to other numbers or null, for its own epochs to count
5. the method's own entry under `methods`, and the value of `vary`
6. assignments: `--set KEY=VALUE` on the command line, `changes` in a notebook
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from iumad.config.schema import SECTIONS, StudyConfig
from iumad.config.sections import MAX_SHOWN, build, nearest, one_line, quoted
from iumad.errors import ConfigError

WINNING = ("model", "training", "increment")  # methods set these too; assignments win over them
MAX_REASON = 300  # letters of PyYAML's message
MAX_VARIANTS = 200  # of one method by `vary`; more is a slip
MAX_BYTES = 1_000_000  # of a params file
MAX_VALUES = 100_000  # in a params file, aliases counted each time they are used
MAX_FILES = 100  # that one file builds on


class UniqueKeys(yaml.SafeLoader):
    """YAML without mappings that name a key twice, of which it would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with every key once."""
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise yaml.YAMLError(
                f"key {quoted(twice[0])} is given twice, {node.start_mark}".strip()
            )
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text.

    Raises
    ------
    ConfigError
        The text is not YAML, or has a value that Python cannot hold; the message begins with `where`.
    """
    try:
        content = yaml.load(text, Loader=UniqueKeys)
        _count_values(content)
    except RecursionError as error:
        raise ConfigError(one_line(f"{where}: not valid YAML: nested too deeply")) from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        # beside YAMLError, what PyYAML raises for dates such as 2026-13-45, integers of thousands of digits, keys
        # without a hash and tags that do not fit their values
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise ConfigError(one_line(f"{where}: not valid YAML: {reason}")) from error
    return content


def _count_values(content: Any) -> None:
    """Refuse content that contains itself, or that a few aliases blow up to more than anybody could write."""
    counts: dict[int, int] = {}

    def count(value: Any) -> int:
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if id(value) not in counts:
            counts[id(value)] = MAX_VALUES  # met again inside: it contains itself
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            counts[id(value)] = 1 + sum(count(each) for each in inner)
        return counts[id(value)]

    if count(content) > MAX_VALUES:
        raise yaml.YAMLError(f"more than {MAX_VALUES} values, or a value that contains itself")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises
    ------
    ConfigError
        The file cannot be read or holds no mapping of names to values.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the name
        raise ConfigError(one_line(f"{path}: cannot be read: {error}")) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            one_line(f"{path}: has more than {MAX_BYTES} bytes, so is no params file")
        )
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(one_line(f"{path}: needs a mapping of keys to values, got {kind}"))
    unnamed = [key for key in content if not isinstance(key, str)]
    if unnamed:
        raise ConfigError(one_line(f"{path}: keys must be names, got {quoted(unnamed[0])}"))
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
        raise ConfigError(
            one_line(f"{path}: base must be a params file or a list of them, got {quoted(bases)}")
        )
    layers: list[tuple[Path, dict[str, Any]]] = []
    for base in bases:
        following, chain = path.parent / base, (*above, path)
        if not following.is_file():
            raise ConfigError(one_line(f"{path}: base: there is no file {following}"))
        if following.resolve() in [each.resolve() for each in chain]:
            names = " -> ".join(str(each) for each in [*chain, following])
            raise ConfigError(
                one_line(f"{chain[0]}: files build on each other in a circle: {names}")
            )
        layers += _layers(following, chain)
        if len(layers) > MAX_FILES:
            raise ConfigError(one_line(f"{chain[0]}: builds on more than {MAX_FILES} files"))
    return [*layers, (path, content)]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Params on top of others: sections merge key by key, all else is replaced."""
    content = dict(below) | dict(above)
    for name in SECTIONS:
        lower, upper = below.get(name), above.get(name)
        if isinstance(lower, Mapping) and isinstance(upper, Mapping):
            replaces = name == "data" and _is_other_data(lower, upper)
            content[name] = dict(upper) if replaces else {**lower, **upper}
    return content


def _is_other_data(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Whether a `data` section is of another data set than the one that it is laid on."""
    name = below.get("name", StudyConfig().data.name)
    return above.get("name", name) != name


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
    if "assigned" in content:
        raise ConfigError(f"{where}: unknown key 'assigned'")
    content = _with_variants(dict(content), where)
    plain: dict[str, Any] = {}
    winning: dict[str, Any] = {}
    for assignment in assignments:
        keys, value = _split(assignment)
        target = winning if keys[0] in WINNING else plain
        if target is winning and len(keys) == 1 and not isinstance(value, Mapping):
            raise ConfigError(
                f"{_set(assignment)}: {keys[0]} is a section, needs e.g. {keys[0]}.KEY=VALUE"
            )
        _assign(target, keys, value, assignment)
    if "methods" in plain:
        content.setdefault("methods", {name: {} for name in StudyConfig().methods})
    for name, value in plain.items():
        below = content.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            replaces = name == "data" and _is_other_data(below, value)
            value = value if replaces else _deep(below, value)
        content[name] = value
    if winning:
        content = merged(content, {k: v for k, v in winning.items() if k != "model"})
        content["assigned"] = winning
    if isinstance(content.get("data"), Mapping):
        content["data"] = {"name": StudyConfig().data.name} | content["data"]
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
        if not isinstance(method, Mapping | None):
            raise ConfigError(
                f"{where}: methods.{name}: needs keys, e.g. preset: iuf, got {quoted(method)}"
            )
        for values in combinations:
            pairs = dict(zip(vary, values, strict=True))
            label = ",".join(f"{key.split('.')[1]}={value}" for key, value in pairs.items())
            entry: dict[str, Any] = {"preset": name} | dict(method or {})
            for key, value in pairs.items():
                section, field = key.split(".")
                own = entry.get(section) or {}
                if not isinstance(own, Mapping):
                    raise ConfigError(
                        f"{where}: methods.{name}.{section}: needs keys, got {quoted(own)}"
                    )
                entry[section] = dict(own) | {field: value}
            expanded[f"{name}[{label}]"] = entry
    return content | {"methods": expanded}


def _split(assignment: str) -> tuple[list[str], Any]:
    """The parts of KEY.SUBKEY and the value of an assignment."""
    key, equals, value = str(assignment).partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{_set(assignment)}: needs KEY=VALUE, e.g. data.root=my/folder")
    names = set(StudyConfig.model_fields) - {"assigned", "methods"}
    if keys[0] not in names | {"methods"}:
        raise ConfigError(
            f"{_set(assignment)}: unknown key {quoted(keys[0])}{nearest(keys[0], names)}"
        )
    return keys, parse_yaml(value, _set(assignment))


def _set(assignment: str) -> str:
    """An assignment as messages name it."""
    text = one_line(str(assignment))
    return f"--set {text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}...'}"


def _assign(content: dict[str, Any], keys: list[str], value: Any, assignment: str) -> None:
    head, *rest = keys
    if not rest:
        content[head] = value
        return
    inner = content.setdefault(head, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"{_set(assignment)}: {head} is a value, not a section")
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
    """Assignments in one text, separated by commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif not quote:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
