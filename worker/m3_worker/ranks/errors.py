"""What can go wrong among the ranks of a group, for those who tell it and import no torch."""


class GroupError(Exception):
    """The ranks are not, or no longer, one group. One line that says which and why."""


class SwapError(Exception):
    """A plan of experts could not be taken: layers before the one that is named have it, all others their old one."""
