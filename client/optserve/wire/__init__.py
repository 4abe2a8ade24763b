"""The protocol between a training loop and the server, defined once for both sides.

`bodies` holds the JSON bodies, `problems` the error types, `gradients` the step's binary forms, `guard` what update
guards tell, and `tensors` deterministic safetensors. The server imports this package; it imports nothing of the server.
"""

API_PREFIX = "/v1"

HEADER_STEP = "Optserve-Step"
HEADER_DURABILITY = "Optserve-Durability"
"""`SYNCED` where a step was on the disk before its reply, `RELAXED` where it was only given to the system."""
HEADER_RESUMED = "Optserve-Resumed"
"""`APPROXIMATE` on the first step after a session was resumed with other bits than it would have had."""
HEADER_GUARD = "Optserve-Guard"
"""What the session's update guard did at a step, where it did something; see `guard`."""
HEADER_SERVER_TIMING = "Server-Timing"
HEADER_IDEMPOTENCY_KEY = "Idempotency-Key"
HEADER_REQUEST_ID = "X-Request-Id"

SYNCED, RELAXED = "synced", "relaxed"
APPROXIMATE = "approximate"
