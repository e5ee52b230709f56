"""Where a router is reached."""

from m3_operator import names
from m3_operator.observed import Manifest


def endpoint(router: Manifest) -> str:
    """The URL of a router's Service, inside the cluster."""
    metadata, port = router["metadata"], router.get("spec", {}).get("service", {}).get("port", 80)
    suffix = "" if port == 80 else f":{port}"
    return f"http://{names.router_name(metadata['name'])}.{metadata['namespace']}.svc{suffix}"
