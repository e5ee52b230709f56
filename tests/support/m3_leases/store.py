"""The lease scripts in plain Python, over dictionaries."""

from collections.abc import Callable

from m3_router.shared.lease_script import KNOWN, LEAVE, NEED_MILLISECONDS, REGISTER, VIEW

WINDOW_ARGUMENTS = 9
ASKED_MILLISECONDS = 2000


class Store:
    """Stands in for the client of a Redis: `eval` takes the scripts and nothing else."""

    def __init__(self, milliseconds: Callable[[], int], need_milliseconds: int = NEED_MILLISECONDS) -> None:
        self._milliseconds = milliseconds
        self._need_milliseconds = need_milliseconds
        self.hashes: dict[str, dict[str, str]] = {}
        self.views: dict[str, str] = {}
        self.asked: dict[str, int] = {}

    def clear(self) -> None:
        """Lose everything."""
        self.hashes.clear()
        self.views.clear()
        self.asked.clear()

    async def eval(self, script: str, count: int, *arguments: str | int) -> object:
        """What Redis would answer."""
        texts = [str(argument) for argument in arguments]
        keys, values = texts[:count], texts[count:]
        if script == REGISTER:
            return self._register(keys[1:], values)
        if script == LEAVE:
            return self._leave(keys, values)
        if script == KNOWN:
            return [int(bool(self.hashes.get(key))) for key in keys]
        if script == VIEW:
            self.views[values[0]] = values[1]
            self.views = {name: view for name, view in self.views.items() if name in values[1].split(",")}
            return [text.encode() for pair in self.views.items() for text in pair]
        raise AssertionError("not a script of ours")

    def _register(self, keys: list[str], values: list[str]) -> list[list[bytes]]:
        me, live = values[0], values[1].split(",")
        granted: list[int] = []
        for index, key in enumerate(keys):
            begin = 3 + WINDOW_ARGUMENTS * index
            numbers = [int(value) for value in values[begin : begin + WINDOW_ARGUMENTS]]
            granted += self._register_one(key, me, live, numbers)
        if values[2] == "0":
            return [[], [str(number).encode() for number in granted]]
        oldest = self._milliseconds() - ASKED_MILLISECONDS
        self.asked = {key: at for key, at in self.asked.items() if at > oldest}
        listed = sorted(self.asked.items(), key=lambda entry: (entry[1], entry[0]))[:256]
        flat = [text for key, at in listed for text in (key.encode(), str(at).encode())]
        return [flat, [str(number).encode() for number in granted]]

    def _register_one(self, key: str, me: str, live: list[str], numbers: list[int]) -> list[int]:
        limit, used, keep, held, want, gone, _, counts_gone, asks = numbers
        fields = self.hashes.setdefault(key, {})
        others = {name: fields[name].split() for name in live if name != me and name in fields}
        dead = [name for name in fields if name not in ("-", "?", *live, me)]
        if not counts_gone:
            for name in dead:
                del fields[name]
            dead = []
        gone_used = int(fields.get("-", "0")) + sum(int(fields[name].split()[1]) for name in dead)
        if me not in fields and gone > gone_used:
            fields["-"] = str(int(fields.get("-", "0")) + gone - gone_used)
            gone_used = gone
        others_used = sum(int(told) for _, told in others.values())
        left = max(0, limit - gone_used - others_used - used)
        share, yielded = left // len(live), 0
        now = self._milliseconds()
        asker, amount, since = fields.get("?", "none 0 0").split()
        has_had_its_turn = want > 0 and now - int(since) >= self._need_milliseconds
        if want and (asker == me or asker not in live or has_had_its_turn):
            fields["?"] = f"{me} {want} {since if asker == me else now}"
            share = max(share, want)
        elif asker == me:
            del fields["?"]
        elif asker in live:
            yielded = int(amount)
            share = max(0, left - yielded) // len(live)
        everyone_has_told = len(others) == len(live) - 1
        free = limit - gone_used - sum(int(held_by) for held_by, _ in others.values())
        granted = max(keep, min(used + share, free if everyone_has_told else held))
        fields[me] = f"{granted} {used}"
        is_enough = granted - used >= (want or (share + 1) // 2)
        if asks and is_enough:
            self.asked.pop(key, None)
        elif asks:
            self.asked[key] = self._milliseconds()
        return [granted, others_used + gone_used, gone_used, yielded]

    def _leave(self, keys: list[str], values: list[str]) -> int:
        me = values[0]
        for key, used in zip(keys, values[1::2], strict=True):
            fields = self.hashes.setdefault(key, {})
            fields.pop(me, None)
            if used != "0":
                fields["-"] = str(int(fields.get("-", "0")) + int(used))
        return 0
