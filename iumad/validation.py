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
        return f"unknown key {key!r}{nearest(str(item['loc'][-1]), _field_names(section))}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "value_error" else f" (given: {item['input']!r})"
    return f"{key}: {message}{given}" if key else message + given


def _field_names(kind: Any) -> set[str]:
    """Names of all fields below a type: of a model, its sections, and the members of unions."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields
        return set(fields).union(*(_field_names(field.annotation) for field in fields.values()))
    return set().union(*(_field_names(part) for part in get_args(kind)))
