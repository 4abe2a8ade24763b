"""The experiments of Andrychowicz et al. 2016 (arXiv 1606.04474) that fit on two cores: `make reproduce`."""
