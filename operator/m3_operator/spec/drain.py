"""How a group leaves."""

from typing import Annotated

from pydantic import Field

from m3_operator.spec.fragments import Model


class DrainSpec(Model):
    """How a group leaves."""

    timeout_seconds: Annotated[int, Field(ge=0, le=86400)] = 300
    """How long requests in flight may take to finish once a group is to go."""
