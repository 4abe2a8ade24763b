"""The HTTP API: one router a resource, each thin."""
