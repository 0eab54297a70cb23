"""Score-based generative modeling through stochastic differential equations (Song et al. 2021), on any tensor shape."""

__version__ = "0.1.0"
