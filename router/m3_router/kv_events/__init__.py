"""What engines say of their own caches: the second source of affinity, beside what the router sent where.

`lines` is the form of our worker's events, `alignment` the way from its pages (of tokens) to the router's blocks (of
bytes), `view` what is known of one worker from both, `native` the connection that brings them. `vllm` is the other
engine's form, which names no requests and therefore tells less.

Exact, from our worker: that all was lost (a new epoch, a cleared cache), and that a page was stored or has gone. Not
exact: which blocks of a prompt a page holds. That is interpolated between known token counts, and is off by a block or
two; a wrong block costs a placement its best worker, and nothing else. Not known at all: pages of requests that this
replica did not send (the replica that did tells of them through the affinity log), and of those that it sent before it
was started again.
"""
