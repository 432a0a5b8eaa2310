"""PipelineCall: how plain diffusers draws with a checkpoint of another family than SANA."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]  # a story may come from anywhere: no source code


class PipelineCall(BaseModel):
    """Class and arguments of a diffusers pipeline.

    Attributes:
        name: class of the pipeline.
        dtype: of its weights; float32: on a CPU, another: on a GPU.
        guidance: argument that takes the guidance scale; None: the call takes none.
        reads_negative: whether a negative prompt has an effect.
        arguments: further arguments with their values, the same in every call.
    """

    model_config = ConfigDict(frozen=True)
    name: Name
    dtype: Name
    guidance: Name | None
    reads_negative: bool
    arguments: dict[Name, bool | int] = Field(default={}, max_length=100)
