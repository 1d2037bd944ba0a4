"""The table of quantizer kinds: to add one, write its class and add a line here."""

from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.gumbel import GumbelSoftmax
from worldmodel.models.quantizers.nearest import VectorQuantizer
from worldmodel.models.quantizers.semantic_hashing import SemanticHashing

Quantizer = VectorQuantizer | GumbelSoftmax | SemanticHashing
QUANTIZERS = {"nearest": VectorQuantizer, "gumbel": GumbelSoftmax, "semhash": SemanticHashing}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Build the quantizer of kind ``config.kind``."""
    return QUANTIZERS[config.kind](config)
