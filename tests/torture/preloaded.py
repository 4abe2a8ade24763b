"""What every server process would import first."""

from optserve_server.optimizers.fused import compile_kernels
from optserve_server.optimizers.kernels.guard import compile_guard

compile_kernels()
compile_guard()
