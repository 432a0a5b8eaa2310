"""Parts of a request's body: their base, and the options of a job that have fields of their own."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

# An integer that 32 bits may not hold. Generators for Go, Java, C# and Rust take 32 bits where the schema does not say.
Int64 = Annotated[int, Field(json_schema_extra={"format": "int64"})]


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


class Draft(RequestModel):
    """Drafts: each candidate's noise is solved in few steps and judged; the best of each heat are solved in full."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    num_inference_steps: int = Field(
        4, strict=True, ge=1, description="Steps of a draft; fewer than those of a full solution."
    )
    keep: float = Field(
        0.125, strict=True, gt=0, le=1, description="Share of a heat that is solved in full, at least one."
    )
    depth: int | None = Field(
        default=None,
        strict=True,
        ge=1,
        exclude_if=lambda depth: depth is None,
        description="Number of layers that a draft uses; those of a full solution if left out.",
    )


class Stop(RequestModel):
    """Early stopping: rules that are checked after each heat, over all candidates so far."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    confidence: float = Field(
        0.97,
        strict=True,
        gt=0,
        lt=1,
        description="Stop at this calibrated probability that the best candidate is right. If left out: 0.97 of the "
        "greatest probability that the judge's calibration gives.",
    )
    min_samples: int = Field(4, strict=True, ge=1, description="Minimum candidates before a job may stop.")
    patience: int = Field(64, strict=True, ge=1, description="Candidates without a yes after which the job stops.")


class Finals(RequestModel):
    """Finals: a knockout by the operator's pairwise judge among the candidates close to the leader."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    max_entrants: int = Field(4, strict=True, ge=2, le=16, description="Maximum number of candidates in the finals.")
    margin: float = Field(1.0, strict=True, ge=0, description="Maximum distance to the leader, in log-odds.")


class Plan(BaseModel):
    """Options chosen for an effort or a budget, with their expected cost."""

    model_config = ConfigDict(frozen=True)
    num_samples: int
    draft: Draft | None = None
    stop: Stop | None = None
    expected_tflops: float = Field(description="Expected work; `usage` holds the actual work.")
    at_most_tflops: float = Field(description="Work if the job does not stop early.")
    score_on_shapes: float = Field(description="Share of correct winners on the shapes benchmark with these options.")
