"""Validation of configuration sections with errors that a user can act on."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from iumad.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def build(section: type[Model], content: Mapping[str, Any], where: str) -> Model:
    """Validate `content` as a `section`.

    Raises
    ------
    ConfigError
        One clause per wrong key: the key, what is wrong, what was given, and the nearest valid name.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        clauses = [_explain(section, item) for item in error.errors(include_url=False)]
        raise ConfigError(f"{where}: " + "; ".join(clauses)) from error


def nearest(word: str, names: Iterable[str]) -> str:
    """', did you mean X?' for the closest of `names`, or nothing."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _explain(section: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        names = _field_names(section, item["loc"][:-1])
        known = f"; known here: {', '.join(names)}"
        return f"unknown key {key!r}{nearest(str(item['loc'][-1]), names) or known}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "value_error" else f" (given: {item['input']!r})"
    return f"{key}: {message}{given}" if key else message + given


def _field_names(section: type[BaseModel], place: Iterable[Any]) -> list[str]:
    """Valid keys at a place in a section: keys of fields and of mappings, and tags of unions, lead there."""
    models = {section}
    for part in place:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = {
            model
            for model in models
            if any(part in get_args(field.annotation) for field in model.model_fields.values())
        }
        models = set().union(*(_models(field.annotation) for field in fields)) or tagged or models
    return sorted(set().union(*(model.model_fields for model in models)))


def _models(kind: Any) -> set[type[BaseModel]]:
    """The sections in a type: itself, the values of a mapping, the members of a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {kind}
    return set().union(*(_models(part) for part in get_args(kind)))
