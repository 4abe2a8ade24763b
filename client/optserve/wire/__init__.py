"""The protocol between a training loop and the server, defined once for both sides.

`bodies` holds the JSON bodies, `problems` the error types, `gradients` the step's binary forms and `tensors`
deterministic safetensors. The server imports this package; it imports nothing of the server.
"""

API_PREFIX = "/v1"

HEADER_STEP = "Optserve-Step"
HEADER_SERVER_TIMING = "Server-Timing"
HEADER_IDEMPOTENCY_KEY = "Idempotency-Key"
HEADER_REQUEST_ID = "X-Request-Id"
