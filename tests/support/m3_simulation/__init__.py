"""The whole operator against a model cluster, in virtual time, decided by one seed.

simulation -> world (server, nodes, controllers, users, traffic, faults) <- operator_process (the real operator)
           -> rules at every step, ending at the end -> Break with the history that led to it
"""
