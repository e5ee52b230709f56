"""References to Secrets whose entries are mounted into pods. The operator itself never reads one."""

from typing import Annotated

from pydantic import StringConstraints

from m3_operator.spec.fragments import DnsSubdomain, Model

# What Kubernetes takes as the key of a Secret, which becomes the name of a file.
SecretEntryName = Annotated[
    str, StringConstraints(pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", min_length=1, max_length=253)
]


class SecretKey(Model):
    """One entry of a Secret of the same namespace."""

    name: DnsSubdomain
    """Name of the Secret."""
    key: SecretEntryName
    """Key in its data."""
