"""Names that every stage and every file share."""

from typing import Literal, get_args

# graph inputs and outputs
PIXEL_VALUES = "pixel_values"
LOGITS = "logits"
FEATURES = "features"  # the input of the head; a tensor of that name is in every exported variant
TOKENS = "tokens"

# input and further outputs of an artifact that prepares images itself
IMAGE = "image"
IMAGE_HW = ("image_height", "image_width")  # dynamic dimensions of it
PROBABILITIES = "probabilities"
TOP_INDEX = "top_index"
TOP_SCORE = "top_score"
SCORE_OUTPUTS = (PROBABILITIES, TOP_INDEX, TOP_SCORE)  # computed from the logits
RESIZE_FORMS = ("op", "matmul")  # how such a graph interpolates: Resize nodes, matrix products
TOP_CLASSES = 5  # classes in the last two, best first; fewer where the model has fewer

ENGINE_SUFFIXES = (".engine", ".plan", ".trt")

HALF_PRECISIONS = ("fp16", "bf16")
INT8_PRECISIONS = ("int8", "int8-static")  # ranges of activations: computed in each run, or fixed
PRECISIONS = ("fp32", *HALF_PRECISIONS, *INT8_PRECISIONS)

OPSETS = {  # in which each form of attention is exported by default
    "decomposed": 20,  # the first with a Gelu node; LayerNormalization came with 17
    "op": 23,  # the first with an Attention node
}

Activation = Literal["softmax", "sigmoid", "none"]  # from logits to scores
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
