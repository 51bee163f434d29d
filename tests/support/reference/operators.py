"""timm imports torchvision, whose compiled part fits one version of torch; without it two operators have no names."""

import sys

import torch

try:
    import torchvision  # noqa: F401  whether it can be imported is the question
except (ImportError, OSError, RuntimeError):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # imported in part
    LIBRARY = torch.library.Library("torchvision", "DEF")  # the names go when it goes
    LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
