"""What every server process would import first."""

from optserve_server.optimizers.fused import compile_kernels

compile_kernels()
