"""Workers: processes that carry out what is queued in the database, one piece of work at a time.

`worker` claims and runs, `holding` renews the lease and guards every write by it, `meta_training` makes the outer steps
of a run and persists them, `evaluating` does so with the curves of an evaluation, and `supervisor` keeps a server's own
workers alive.
"""
