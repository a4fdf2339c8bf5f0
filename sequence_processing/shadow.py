"""A second tree of modules over the same parameters: whatever is done to the tree, the first one stays as it is."""

import copy
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def shadow(model: Model) -> Model:
    """A copy of `model` that shares its parameters and nothing else: modules, buffers and configs are its own.

    Replacing a module or a parameter in the copy leaves `model` alone; writing into a shared parameter does not.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
