"""The server's stack without what a step computes and keeps: gradients are received as ever, and sent back."""

import sys
from collections.abc import MutableMapping
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

from optserve.wire.gradients import OCTET_STREAM
from optserve_server.api import forms
from optserve_server.api.bodies import PlainRoute, receive
from optserve_server.api.protocol import Protocol
from optserve_server.api.targets import Target
from optserve_server.sessions.errors import GradientsInvalid
from optserve_server.sessions.layout import lay_out
from optserve_server.sessions.steps import StepGradients

app = FastAPI()
app.router.route_class = PlainRoute


@app.post("/v1/sessions/{coordinates}/steps/{step}")
async def take_step(request: Request) -> Response:
    coordinates = int(request.path_params["coordinates"])
    layout = lay_out([("w", (coordinates,))], coordinates)
    gradients = StepGradients(layout.complete, "float32")
    target = Target("gradients", gradients.bits, gradients.selection, "float32", GradientsInvalid)
    await receive(request, forms.media_type(request.headers["content-type"]), target)
    return Response(gradients.bits.view("u1").data, 200, media_type=OCTET_STREAM)


if __name__ == "__main__":
    address = sys.argv[1]
    where: MutableMapping[str, Any] = {"port": int(address)} if address.isdigit() else {"uds": address}
    uvicorn.run(
        app,
        http=Protocol,
        ws="none",
        loop="uvloop",
        access_log=False,
        log_level="warning",
        server_header=False,
        **where,
    )
