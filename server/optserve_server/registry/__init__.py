"""Optimizers, their immutable versions and the aliases that point at them, in SQL.

`database` opens SQLite or PostgreSQL and migrates it, `models` is the schema, `optimizers` holds every query and
`bundled` registers the optimizers that come with the package.
"""
