"""What every server process would import first."""

from optserve_server.optimizers.serving import compile_served

compile_served()
