"""Triton kernels, a module for each operator's of the same name, imported when a CUDA tensor first asks for one."""
