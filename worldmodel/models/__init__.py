"""The networks, on torch alone.

Shapes are written with these letters throughout:
``B`` batch, ``T`` frames, ``C`` channels, ``H W`` picture or grid, ``D`` code vector, ``K`` codes in the codebook;
``*grid`` is ``(N,)`` for sound, ``(H, W)`` for pictures or ``(T, H, W)`` for video. Tensors are ``(B, C, *grid)``,
codes ``(B, *grid)`` int64 in ``[0, K)``.
"""
