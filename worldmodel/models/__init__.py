"""The networks, on PyTorch alone (``kernels`` are optional and need Numba).

These letters denote shapes everywhere: ``B`` batch, ``T`` frames, ``C`` channels, ``H W`` height and width of an image
or grid, ``D`` dimension of a code vector, ``K`` codes in the codebook; ``*grid`` is ``(N,)`` for audio, ``(H, W)`` for
images or ``(T, H, W)`` for video. Tensors are ``(B, C, *grid)``, codes ``(B, *grid)`` int64 in ``[0, K)``.
"""
