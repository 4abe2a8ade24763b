"""Where sessions are on disk: journals of their steps, snapshots of their states.

It knows bytes and files and nothing of optimizers. docs/durability.md describes every file.
"""
