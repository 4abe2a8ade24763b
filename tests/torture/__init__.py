"""Kills a server with `kill -9` again and again while training loops use it, and checks every reply they get.

    make torture N=1000

The loops go through everything that changes a session. Afterwards the same loops run on a server that nobody disturbs,
and each reply must have the same bytes.
"""
