"""Steps of the default on accelerators: CUDA graphs, Triton kernels, `out=`."""
