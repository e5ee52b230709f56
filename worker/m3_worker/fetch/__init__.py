"""A checkpoint from a hub into a cache, once: resumed byte by byte, every file verified, a marker written last.

    __main__ -> cache (is it there? the lock) -> hub (what there is to download) -> download -> cache (the marker)

Of the libraries that could do this, the hub's own gives up the bytes of a file that was interrupted, and does not
compare contents with the digests that the hub announces; with files of gigabytes both matter.
"""
