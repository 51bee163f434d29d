"""Convert FastVLM checkpoints: ``python convert.py --help``. The converter itself is ``mlx_fastvlm/convert.py``."""

import sys

from mlx_fastvlm.convert import main

if __name__ == "__main__":
    sys.exit(main())
