"""Fine-tuning: ``mlx_fastvlm.tuner.train``, and what it takes."""

from ..checkpoints.adapters import AdapterConfig
from .calibration import calibration
from .conversations import read_conversations
from .fusing import fuse_adapters
from .options import TrainingOptions
from .reports import Report
from .samples import encode_all
from .trainer import evaluate, train

__all__ = [
    "AdapterConfig",
    "Report",
    "TrainingOptions",
    "calibration",
    "encode_all",
    "evaluate",
    "fuse_adapters",
    "read_conversations",
    "train",
]
