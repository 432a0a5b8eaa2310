"""Base of the request's schemas: null is unset, a whole number is an integer, and fields are judged by value."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class RequestModel(BaseModel):
    """A part of a request's body. Generated clients send every field, with its published default or null.

    A field that is null takes its default. A float without a fraction is read as an integer, as JSON Schema has it.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _read(cls, sent: Any) -> Any:
        if not isinstance(sent, Mapping):
            return sent
        read = {name: value for name, value in sent.items() if value is not None or name not in cls.model_fields}
        return {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in read.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema, which says that every field with a default may be null."""
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        for name, field in described.get("properties", {}).items():
            if name not in described.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                described["properties"][name] = _nullable(field)
        return schema

    def chosen(self, name: str) -> bool:
        """Whether the field has another value than its default."""
        field = type(self).model_fields.get(name)
        return field is not None and bool(getattr(self, name) != field.default)


_ABOUT = frozenset({"title", "description", "default", "examples", "deprecated"})


def _nullable(field: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: value for name, value in field.items() if name in _ABOUT}
    return about | {"anyOf": [{name: value for name, value in field.items() if name not in _ABOUT}, {"type": "null"}]}
