"""A real Kubernetes for automated tests, built from package registries alone.

`build` compiles the binaries once, `control_plane` runs an API server with simulated nodes (no root), `real` adds two
nodes that run containers (root), `images` and `layers` write the container images. `python -m m3_testcluster --help`
does the same from a shell. The pytest fixtures are in `tests/conftest.py`.
"""
