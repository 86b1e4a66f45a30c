"""cuDNN's fused attention on NVIDIA GPUs, through JAX's public door.

It knows a causal mask and lengths, not segments, so it takes rows of one document only. There the
causal mask is enough: padding stands at the end, where nothing real sees it. (Padding sees what is
real here, and itself alone elsewhere; no loss reads padding, so neither losses nor gradients differ.)
"""

import jax


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q: [B, T, N, H], scaled; k, v: [B, T, K, H]; bfloat16 or float16. Returns [B, T, N, H].

    Key-value heads are not repeated. The backward pass keeps q, k, v, the output and a log-sum-exp.
    """
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=True, implementation="cudnn")
