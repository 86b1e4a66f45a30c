"""cuDNN's fused attention on NVIDIA GPUs, through JAX's public interface.

It supports a causal mask but no segments, so rows must hold one document. Padding then stands at the end, where no
token sees it. (Padding itself sees tokens here, but not in other back ends; no loss or gradient depends on it.)
"""

import jax


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q: [B, T, N, H], scaled; k, v: [B, T, K, H]; bfloat16 or float16. Returns [B, T, N, H].

    Key-value heads are not repeated. The backward pass keeps q, k, v, the output and a log-sum-exp.
    """
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=True, implementation="cudnn")
