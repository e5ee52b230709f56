"""What stands for a field that is not in a body. By itself, so that compiled modules know where it is."""

from typing import Final

import msgspec

ABSENT: Final = msgspec.Raw()
