"""Example files, as a package so that they are installed with it; each works with `kubectl apply -f` and `m3 up`."""
