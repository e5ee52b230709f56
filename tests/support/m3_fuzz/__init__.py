"""Fuzzing of the router: messages and answers of every kind, mutated from a seed, against a process of it.

    corpus.py     what is sent before it is mutated: requests, bodies, workers' answers, events
    mutation.py   how it is changed, decided by a seeded generator alone
    cases.py      one connection of a client: pieces, pauses, and how it ends
    answers.py    whether what came back is HTTP, read by a parser that is not the router's (h11)
    hostile.py    workers: a good one, and one that answers with whatever the generator says
    process.py    the router's process, its Redis, and what it weighs
    campaign.py   cases side by side for so many seconds, and what must hold of them

`python -m m3_fuzz --seconds 600` runs a campaign with a new seed, and prints it.
"""
