"""Kernels and allocator settings that only a CPU needs."""
