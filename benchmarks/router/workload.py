"""Conversations of many tenants, as the simulation's workers see them: lengths, times, and digests of blocks.

Random and seeded. Shaped like what is published of real ones; the sources stand at `conversations_of`.
"""

import math
import random
from dataclasses import dataclass

BLOCK_TOKENS = 256
TENANTS = 60
DIGEST_MASK = 2**64 - 1


@dataclass(frozen=True)
class Turn:
    """What a user adds, what the model answers, and how long the user takes before that."""

    user_tokens: int
    output_tokens: int
    think_seconds: float


@dataclass(frozen=True)
class Conversation:
    """One conversation: it begins with its tenant's system prompt, and every turn repeats all that was said."""

    number: int
    begins_at: float
    tenant: int
    system_tokens: int
    turns: tuple[Turn, ...]

    def chain(self, tokens: int) -> list[int]:
        """Digests of the first `tokens` tokens, whole blocks; those of the system prompt are its tenant's."""
        shared = min(self.system_tokens, tokens) // BLOCK_TOKENS
        own = tokens // BLOCK_TOKENS - shared
        return [
            *(hash((self.tenant, 0, i)) & DIGEST_MASK for i in range(shared)),
            *(hash((self.tenant, self.number + 1, i)) & DIGEST_MASK for i in range(own)),
        ]


def conversations_of(seed: int, load: float, seconds: float) -> list[Conversation]:
    """Conversations that begin within `seconds`, `load` of them a second on average.

    73 % have several turns, as in ShareGPT (arXiv 2403.19708, section 2). A third works on a document or a repository
    of 4K to 32K tokens; with it the mean input is near that of Mooncake's public trace, 7,590 tokens, and so is the
    answer's, 182 (arXiv 2407.00079, section 4.2). Tenants share a system prompt of 0.5K to 12K tokens, and are as
    unequal as words are (Zipf); llm-d's benchmark of this kind has 150 with 6K each. Lengths are log-normal.
    """
    source = random.Random(f"{seed} {load}")
    tenants = [min(12_000, max(500, int(source.lognormvariate(math.log(2500), 0.8)))) for _ in range(TENANTS)]
    shares = [1 / (i + 1) for i in range(TENANTS)]
    conversations: list[Conversation] = []
    now = 0.0
    while True:
        now += source.expovariate(load)
        if now >= seconds:
            return conversations
        tenant = source.choices(range(TENANTS), shares)[0]
        turns = 1 if source.random() < 0.27 else 2 + min(int(source.expovariate(1 / 3.0)), 18)
        document = int(4000 * 8 ** source.random()) if source.random() < 1 / 3 else 0
        conversations.append(
            Conversation(
                len(conversations),
                now,
                tenant,
                tenants[tenant],
                tuple(
                    Turn(
                        user_tokens=(document if i == 0 else 0) + 10 + int(source.lognormvariate(math.log(90), 1.1)),
                        output_tokens=5 + min(int(source.lognormvariate(math.log(130), 0.8)), 4000),
                        think_seconds=min(source.lognormvariate(math.log(25), 1.0), 600),
                    )
                    for i in range(turns)
                ),
            )
        )
