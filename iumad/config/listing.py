"""The list of all keys of a params file, from the sections themselves."""

import math
from collections.abc import Collection
from typing import Any, get_args

import yaml
from pydantic_core import PydanticUndefined, to_jsonable_python

from iumad.config.methods import MethodConfig, ModelConfig
from iumad.config.schema import StudyConfig
from iumad.config.sections import AnyData, IncrementConfig, PerturbConfig, Section


def all_keys() -> str:
    """Every key with its default and meaning, as a params file; keys without a place of their own are comments."""
    about = {name: field.description for name, field in StudyConfig.model_fields.items()}
    lines = [
        "# base: FILE.yaml  # what this file builds on; it holds only what differs",
        "# vary: {training.lr: [1.0e-3, 3.0e-3]}  # every method once for each value",
    ]
    data, *others = get_args(AnyData)
    reconstruction, *kinds = get_args(get_args(ModelConfig)[0])
    commented = {
        "data": [
            (f"instead of n_train to seed, name {_literal(kind, 'name')}:", kind) for kind in others
        ],
        "model": [
            ("of all reconstruction methods:", reconstruction),
            *((f"of methods.NAME.model, kind {_literal(kind, 'kind')}:", kind) for kind in kinds),
        ],
        "increment": [("of all methods:", IncrementConfig)],
        "methods": [
            ("of methods.NAME:", MethodConfig),
            ("of methods.NAME.perturb:", PerturbConfig),
        ],
    }
    for name, field in StudyConfig.model_fields.items():
        if name == "assigned":
            continue
        section = {"data": data}.get(name, field.annotation)
        if isinstance(section, type) and issubclass(section, Section):
            lines += [f"{name}:", *_keys_of(section, "  ")]
        else:
            value = field.get_default(call_default_factory=True)
            if name == "methods":
                value = {method: {} for method in value}
            lines.append(_key_line(name, value, about[name], ""))
        for title, kind in commented.get(name, []):
            extends = kind in kinds and issubclass(kind, reconstruction)
            above = data if name == "data" else reconstruction if extends else Section
            lines += [f"  # {title}", *_keys_of(kind, "  #   ", {"kind", *above.model_fields})]
    return "\n".join(lines)


def _literal(section: type[Section], key: str) -> str:
    """The words that a key may have."""
    return " or ".join(get_args(section.model_fields[key].annotation))


def _keys_of(section: type[Section], indent: str, but: Collection[str] = ()) -> list[str]:
    """A line for each key of a section but some."""
    return [
        _key_line(name, field.get_default(call_default_factory=True), field.description, indent)
        for name, field in section.model_fields.items()
        if name not in but
    ]


def _key_line(name: str, value: Any, about: str | None, indent: str) -> str:
    if value is PydanticUndefined:
        text = ""
    else:
        plain = to_jsonable_python(value)
        text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False)
        text = " " + text.strip().removesuffix("...").strip()
    return f"{indent}{name}:{text}" + (f"  # {about}" if about else "")
