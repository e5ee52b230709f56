"""The errors of this package: one base, and what can go wrong with the API server, by what is to be done about it."""

from collections.abc import Mapping
from typing import Any


class OperatorError(Exception):
    """Base of the operator's own errors. The message is one line for people."""


class ApiError(OperatorError):
    """The API server answered with an error. `status` is its HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NotFoundError(ApiError):
    """There is no such object, or no such kind of object."""


class GoneError(ApiError):
    """The object that was to be written is not there any more, or another has its name. `uid` is of the lost one."""

    def __init__(self, message: str, uid: str) -> None:
        super().__init__(404, message)
        self.uid = uid


class ConflictError(ApiError):
    """The object is there already, or is not the one that was seen."""


class RefusedError(ApiError):
    """The API server will not have it: invalid, forbidden by policy or quota, or beyond the operator's rights.

    Asking again does not help until somebody changes something.
    """


class UnavailableError(ApiError):
    """The API server is not reachable, overloaded or failing: asking again later may help. Unreachable is status 0."""


class ChangedError(UnavailableError):
    """An object is not as it was when it was decided what to do with it. `found` is how it is now."""

    def __init__(self, message: str, found: Mapping[str, Any]) -> None:
        super().__init__(409, message)
        self.found = found


class NameTakenError(OperatorError):
    """An object with a name that the operator needs belongs to somebody else."""
